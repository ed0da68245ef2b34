"""One node as the keeper sees it: the way to it, its probe, its faults, its hive, what of rbee is there."""
