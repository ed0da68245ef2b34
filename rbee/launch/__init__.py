"""`rbee launch`: programs that speak to a language model, started with a gateway of their own. Begin with `run`."""
