"""Connections held between commands: a process in the background, or a running gateway, and the way to ask it."""
