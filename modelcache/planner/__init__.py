"""The planner: which chunk is fetched from which source, when, and how often. No I/O, no clock."""
