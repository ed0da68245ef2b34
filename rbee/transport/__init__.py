"""How bytes get to a node: SSH or this machine, scripts for its shell, uploads, and a connection that is made anew."""
