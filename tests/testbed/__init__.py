"""Real SSH nodes for the tests: images made on this machine, containers started from them, and checks for leaks."""
