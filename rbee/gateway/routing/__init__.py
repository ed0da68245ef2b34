"""Which worker takes a request, and who waits. Begin with `routing`, which decides, and `dispatcher`, which acts."""
