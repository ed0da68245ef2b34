"""What form an answer may have: grammars and JSON schemas, as the tokens that are allowed next.

`llama.grammars` builds a `matcher.Matcher` for each request; `requests` checks grammars and schemas by `gbnf` and
`json_schema`. Nothing here knows llama.cpp.
"""
