#!/usr/bin/env bash
# Check the guarantees for interrupted runs and damaged files at full length. The exit status is 1 if a check fails.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" "[dev]"

status=0
python scripts/soak.py || status=1
python scripts/fuzz_configs.py || status=1
python scripts/fuzz_tensors.py || status=1
exit $status
