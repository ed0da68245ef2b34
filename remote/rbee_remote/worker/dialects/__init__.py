"""How families of models write reasoning and tool calls, and how that is read back: one file for each dialect.

`requests` finds a template's dialect and uses its reader; `interface` says what a dialect is. Nothing here knows
llama.cpp, and nothing does I/O.
"""
