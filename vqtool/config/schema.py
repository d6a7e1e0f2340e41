"""The whole run as typed, frozen settings. It only composes: each block stands beside what it configures."""

from pydantic import Field, field_validator

from vqtool.autoencoder import ModelSettings
from vqtool.config.training import TrainingSettings
from vqtool.data import DataKind
from vqtool.losses import LossSettings
from vqtool.settings import Settings

# Of a file or folder, on every file system in common use.
_LONGEST_NAME = 255


class RunSettings(Settings):
    """All that a run depends on."""

    name: str | None = Field(None, min_length=1, description="left out: the config file's")
    seed: int = Field(0, ge=0, lt=2**32, description="of weights, split, order and synthetic samples")
    data: DataKind = Field(description="where samples come from")
    model: ModelSettings = Field(description="what is trained")
    loss: LossSettings = Field(LossSettings(), description="what it is trained by")
    training: TrainingSettings = Field(TrainingSettings(), description="how")

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str | None) -> str | None:
        if name is not None and (set(name) <= {"."} or any(c in "/\\" or not c.isprintable() for c in name)):
            raise ValueError("expected a name that a folder can have, without slashes")
        if name is not None and len(name.encode()) > _LONGEST_NAME:
            raise ValueError(f"expected a name of at most {_LONGEST_NAME} bytes, as a folder can have")
        return name
