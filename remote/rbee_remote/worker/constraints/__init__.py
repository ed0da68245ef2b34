"""What form an answer may have: grammars and JSON schemas, as the tokens that are allowed next."""
