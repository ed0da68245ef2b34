"""`rbee gc`: what is of no use any more on the nodes and here, decided in pure code (`plan`), done in `run`."""
