"""Contenders that are libraries, and plain code that finds the machine's limits."""
