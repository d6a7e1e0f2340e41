"""Training: the loop and what it keeps."""

from vqtool.training.dry_run import DryRun, dry_run
from vqtool.training.train import run_folder, train

__all__ = ["DryRun", "dry_run", "run_folder", "train"]
