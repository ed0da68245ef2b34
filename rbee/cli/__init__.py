"""The command line. `main` has the Typer app, and is the one place where an RbeeError becomes text and an exit status.

One file for each group of commands turns options into values, calls a use case and hands what comes back to a renderer.
Nothing outside uses more than `main.make_app` and `main.main`.
"""
