"""The whole run as typed, frozen settings. It only composes: each block stands beside what it configures."""

from typing import Any, Literal

from pydantic import Field, field_validator

from vqtool.config.training import TrainingSettings
from vqtool.data import DataKind
from vqtool.models.autoencoder import ModelSettings
from vqtool.models.losses import LossSettings
from vqtool.runtime.files import unsupported_version
from vqtool.runtime.settings import Settings

# Of a file or folder, on every file system in common use.
_LONGEST_NAME = 255


class RunSettings(Settings):
    """Config of one run."""

    format_version: Literal[1] = Field(1, description="version of the format of this file")
    name: str | None = Field(
        None,
        min_length=1,
        description="name of the run and of its directory runs/<name>; null: name of the config file",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of weights, split, batch order and synthetic samples")
    data: DataKind = Field(description="samples to train on and to validate on")
    model: ModelSettings = Field(description="encoder, quantizer and decoder")
    loss: LossSettings = Field(LossSettings(), description="loss and its weights")
    training: TrainingSettings = Field(TrainingSettings(), description="optimizer, validation and checkpoints")

    @field_validator("format_version", mode="before")
    @classmethod
    def _is_supported(cls, version: Any) -> Any:
        if type(version) is not int or version != 1:
            raise ValueError(unsupported_version(version, 1, "use a config with format_version 1"))
        return version

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str | None) -> str | None:
        if name is not None and (set(name) <= {"."} or any(c in "/\\" or not c.isprintable() for c in name)):
            raise ValueError("expected a directory name without slashes and control characters")
        if name is not None and len(name.encode()) > _LONGEST_NAME:
            raise ValueError(f"expected a directory name of at most {_LONGEST_NAME} bytes")
        return name
