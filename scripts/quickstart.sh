#!/usr/bin/env bash
# From a fresh clone to a trained tokenizer: installs, trains configs/quickstart.yaml, encodes, inspects.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" ""

run=runs/quickstart
vqtool train --config configs/quickstart.yaml --run-dir "$run" --overwrite
vqtool encode "$run" --out "$run/tokens.npy" --overwrite
vqtool inspect "$run"

cat <<END

What to open now:
  .venv/bin/tensorboard --logdir $run       losses, codebook usage and reconstructions, at http://localhost:6006
  $run/tokens.npy                 the indices, and $run/tokens.json, what they are
  configs/                                  recipes for vectors, sequences, images and tile maps; README.md says more
END
