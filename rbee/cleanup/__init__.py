"""`rbee gc` and `rbee uninstall`: what is left over, found and removed. `plan` decides, `run` acts."""
