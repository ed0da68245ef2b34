"""What the other commands do over many nodes: workers, models, hives, logs, bench, nodes.

One file for each group of commands; only the command line uses them.
"""
