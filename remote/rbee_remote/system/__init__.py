"""This machine, for hive, worker and clean-up: processes, their identity, environment, audit record, log lines."""
