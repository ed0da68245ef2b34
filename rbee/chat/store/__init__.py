"""chats.db: sessions and lines that were typed, the only SQL of chats. Begin with sessions; file makes the file."""
