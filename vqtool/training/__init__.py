"""Training: the loop and what it keeps."""

from vqtool.training.train import run_folder, train

__all__ = ["run_folder", "train"]
