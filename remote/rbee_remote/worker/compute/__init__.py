"""The engine's thread: what the next step computes, and how long it may take.

`service` uses `loop.EngineThread` alone, and `batching.QueueFull`.
"""
