"""`rbee top`: nodes and workers, live. Begin with run (what runs); model (what is known, as values), watched (events of
one node to that), order, columns, layout and view are pure; feed follows one node, screen and keys are the terminal."""
