"""What the other commands do over many nodes: workers, models, hives, logs, bench, nodes, the audit record."""
