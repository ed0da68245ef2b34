"""What a node needs before it can run a model: runtime, wheels, payload, hive. `attach` is where to begin reading."""
