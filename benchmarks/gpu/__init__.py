"""Half an hour on a borrowed GPU machine without internet: what travels there (`make gpu-pack`), and the steps that run
there (`benchmarks/gpu/run.sh`). README.md tells how."""
