"""What is kept of requests that are over: usage, metrics, a line of a log. Begin with `records`."""
