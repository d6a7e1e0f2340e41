#!/usr/bin/env bash
# Lint, types and tests, in an environment of its own.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" "[dev]"

ruff check .
ruff format --check .
mypy
pytest --numprocesses auto --dist worksteal "$@"
