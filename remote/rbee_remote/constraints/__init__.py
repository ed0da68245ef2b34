"""What form an answer may have, by a JSON schema, a grammar (GBNF or Lark) or a regular expression, as a rule of
llguidance's Lark.

`rules.content_rule` and `rules.json_rule` are for others; the keeper imports them to refuse before anything is
connected. Nothing here knows a model or llama.cpp. llguidance may be missing, on either side: `library.is_available`
says so, and what can be said without it is said.

rules ─┬─ gbnf       GBNF to Lark
       ├─ library    llguidance: what it says of a grammar
       ├─ blame      which part of a schema it does not take
       └─ schema     a JSON schema made into one that llguidance enforces whole
            ├─ part        one schema of it, keyword by keyword; objects has the keywords about objects and conditions
            ├─ shapes      whether it is a schema at all
            ├─ references  where $ref leads
            ├─ patterns    regular expressions, and formats as such
            ├─ disjoint    oneOf
            ├─ finite      schemas that require themselves
            └─ values, places
"""
