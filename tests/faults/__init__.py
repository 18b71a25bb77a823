"""Runs that are disturbed on purpose, for hours: `make faults`. The suite has a shortened form."""
