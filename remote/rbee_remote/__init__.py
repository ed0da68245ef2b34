"""Everything of rbee that runs on a node. Never imports `rbee`."""
