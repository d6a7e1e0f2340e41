"""Training: the loop and what it keeps."""

from vqtool.training.dry_run import Plan, plan_run
from vqtool.training.train import run_folder, train

__all__ = ["Plan", "plan_run", "run_folder", "train"]
