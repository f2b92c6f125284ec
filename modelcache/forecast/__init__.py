"""What will be needed, and when it will be ready: formulas alone, with no clock and no I/O."""
