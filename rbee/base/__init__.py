"""What every part of the keeper uses: errors, events, settings, locks, durations, deadlines, local files."""
