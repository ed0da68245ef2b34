"""How bytes get to a node: SSH or this machine, scripts for its shell, uploads, and a connection that is made anew.

Most others see `connection.Connection` alone, whichever way it goes; `node.session` opens it.
"""
