"""GGUF files: their head, whatever it claims, what they say of the model, and what memory its context takes.

It runs in a process of its own, `inspect`: nothing else imports it.
"""
