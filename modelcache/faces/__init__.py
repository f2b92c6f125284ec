"""Faces: how people and machines ask. They render and translate; the agent decides."""
