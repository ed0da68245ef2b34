"""What every part of the keeper uses: errors, events, settings, locks, durations, deadlines, local files.

Every folder may use every file here; nothing here uses another folder of the keeper.
"""
