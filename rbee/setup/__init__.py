"""What a node needs before it can run a model: runtime, wheels, payload, hive. `attach` is where to begin reading.

Others use `attach.attach`; `models` also uses `pip` and `child`, and `cleanup` the payload and the wheel cache.
"""
