"""What the rest of setup is made of: pip and the locks, platforms, child processes, scripts for nodes."""
