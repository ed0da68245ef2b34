"""What an engine is, for everything in a worker that does not import llama.cpp."""
