"""Figures of what averaging and refitting do, drawn from saved runs."""
