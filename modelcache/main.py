"""The command line and all wiring."""
