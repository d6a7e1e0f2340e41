#!/usr/bin/env bash
# Install vqtool with its development tools into .venv, and run linter, type checker and tests.
# Arguments are passed to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" "[dev]"

ruff check .
ruff format --check .
mypy
pytest --numprocesses auto --dist worksteal "$@"
