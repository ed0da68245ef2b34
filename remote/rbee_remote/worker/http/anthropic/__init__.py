"""Anthropic's Messages API: chats as Claude Code and Anthropic's libraries speak them."""
