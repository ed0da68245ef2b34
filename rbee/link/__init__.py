"""Connections held between commands: a process in the background, or a running gateway, and the way to ask it.

A command is given to whoever holds connections as it was typed: `client` sends its words over a unix socket in rbee's
home, `server` has them read and run by the code that runs them anywhere else, and what that writes comes back as it is.
So the client needs Python's socket and json, and neither a parser nor a renderer.

Others use `client.over_link`, `server.LinkServer` (inside a running gateway), `leaving` and `holder` (what
is left behind by the first command) and `session.Session`, which a command that is run for a client sees.

Rules
- `client`, `place` and `messages` import nothing heavy: a command over the link is to be faster than ssh itself. A test
  names all that they may import.
- Whatever is wrong with the link, the command goes the direct way. What cannot be done here as it would be done there
  (a question, a file, a node that is not held) is refused before anything has happened: `base.errors.ElsewhereError`.
"""
