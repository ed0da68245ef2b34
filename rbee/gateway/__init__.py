"""`rbee serve`: one HTTP endpoint for every node. Begin with `serve` (what runs) and `proxy` (one request's way)."""
