"""What is asked of the connectors: replays, timed comparisons, faults in every step, the remarks of the review."""
