"""The worker seen from outside: its state, who may come in, who keeps it, when it ends, what the hive is told.

Others use `service.Service` alone; `main` also opens the `hive_pipe`.
"""
