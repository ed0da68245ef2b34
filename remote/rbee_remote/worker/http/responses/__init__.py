"""OpenAI's Responses API, without a memory of its own: who goes on with a conversation sends all of it."""
