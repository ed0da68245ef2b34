"""The routes of a worker, and the APIs that clients know."""
