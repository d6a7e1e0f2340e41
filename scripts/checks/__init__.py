"""Checks of the soak, fuzz and process scripts."""
