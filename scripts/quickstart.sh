#!/usr/bin/env bash
# Install vqtool into .venv, train configs/quickstart.yaml, encode its data and inspect the run.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" ""

run=runs/quickstart
vqtool train --config configs/quickstart.yaml --run-dir "$run" --overwrite
vqtool encode "$run" --out "$run/tokens.npy" --overwrite
vqtool inspect "$run"

cat <<END

Next steps:
  .venv/bin/tensorboard --logdir $run   losses, codebook usage and reconstructions at http://localhost:6006
  $run/tokens.npy                       token indices; manifest: $run/tokens.json
  configs/                                         recipes for vectors, sequences, images and tile maps; see configs/README.md
END
