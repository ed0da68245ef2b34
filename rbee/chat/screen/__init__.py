"""Keyboard and terminal of a chat, the only prompt_toolkit. Begin with run: prompt reads what is typed, terminal shows
(a `View`); plain does both where there is no terminal, or a dumb one. modes, editor and clipboard are parts."""
