"""`rbee batch`: a file of requests over all nodes at once. Begin with `batch`.

Pure: lines and template (the input), defaults (what lines leave open), results and numbers (the output), verdict (asked
again, or failed), pace (how many at once), tally (how fast), sample. With files: reading, journal. With nodes: asker,
crew, look.
"""
