"""`rbee chat`, begin with chat: a conversation at the keyboard, turn by turn.

Pure: conversation (what was said), room (what of it still fits), words (what a /word means, and how it goes on), asked
(what holds for the next answer), multiline and code_blocks. attachments reads files; asking brings one turn to a
worker; commands does what /words say; interrupt is Ctrl-C. `store` keeps sessions, `screen` is the keyboard and the
terminal.
"""
