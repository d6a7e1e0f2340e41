"""Training: set-up, training loop, validation, logs and dry run."""

from vqtool.training.dry_run import DryRun, dry_run
from vqtool.training.train import default_run_dir, train

__all__ = ["DryRun", "default_run_dir", "dry_run", "train"]
