"""Config of a run: typed, frozen settings, loaded from YAML and overrides."""

from vqtool.config.load import load_config, write_config
from vqtool.config.schema import RunSettings
from vqtool.config.training import BEST_METRICS, TrainingSettings, cumulative_lr, learning_rate

__all__ = [
    "BEST_METRICS",
    "RunSettings",
    "TrainingSettings",
    "cumulative_lr",
    "learning_rate",
    "load_config",
    "write_config",
]
