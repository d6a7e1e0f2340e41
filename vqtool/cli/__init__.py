"""The command line, a thin skin: one file a command."""

from vqtool.cli.app import main

__all__ = ["main"]
