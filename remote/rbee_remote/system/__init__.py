"""This machine, for hive, worker and clean-up: processes, their identity, environment, audit record, log lines.

Any part of the node side may use every file here; survey and tidy see processes through `interface` alone.
"""
