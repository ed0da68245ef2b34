"""`rbee gc` and `rbee uninstall`: what is left over, found and removed. `plan` decides, `run` acts.

Only the command line uses it: `run.clean_up`, `uninstall.uninstall` and `install.schedule`, and what they return.
"""
