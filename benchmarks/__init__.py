"""How fast rbee is, against what else one could use. `python -m benchmarks [NAME …]`, or `make bench`."""
