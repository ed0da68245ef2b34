"""One node as the keeper sees it: a session with it, its probe, its faults, its hive, what of rbee is there.

Others open nodes by `session`, and talk to hives and workers by `hive_client`; `probe` says what a node is, `diagnosis`
what is wrong with it.
"""
