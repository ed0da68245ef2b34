"""Seeing what of rbee is on a node, and tidying it up: node commands that need no hive and no runtime.

    survey ─┬─ processes    which of them are ours, whose owner is gone, who answers
            ├─ files        what lies in our folders, and how long nobody has used it
            └─ usage        what running processes use of it
    tidy ───┬─ termination  asked, SIGTERM, SIGKILL; everything that belongs to a process
            └─ removal      takes away what still is what was surveyed

All of it acts through `interface.System`, whose stand-in for tests is their ScriptedSystem. Standard library only: a
node whose runtime is broken has to be tidied too. (Elsewhere than on Linux processes are seen with psutil.)
"""
