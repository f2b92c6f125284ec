"""Side-by-side measurements against the tools a user would take instead."""
