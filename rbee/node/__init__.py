"""One node as the keeper sees it: a session with it, its probe, its faults, its hive, what of rbee is there."""
