"""`python -m vqtool`."""

from vqtool.cli import main

main()
