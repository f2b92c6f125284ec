"""Make model weights appear on a node as fast as the hardware allows."""
