"""A request from its text to its events: prompt, sampling, generation, journal."""
