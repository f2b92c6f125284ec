"""The transfer engine: runs what the planner decides and feeds back what happened."""
