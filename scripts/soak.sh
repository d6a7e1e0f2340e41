#!/usr/bin/env bash
# Everything that is promised of runs in trouble and of files from strangers, at full count; prints what came of it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" "[dev]"

status=0
python scripts/soak.py || status=1
python scripts/fuzz_configs.py || status=1
python scripts/fuzz_tensors.py || status=1
exit $status
