"""Settings of a whole run, composed of the settings of its components; lookup of a settings class by its key."""

from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from vqtool.config.training import TrainingSettings
from vqtool.data import AnyDataSettings
from vqtool.models.autoencoder import ModelSettings
from vqtool.models.losses import LossSettings
from vqtool.runtime.files import unsupported_version_message
from vqtool.runtime.settings import Settings

SettingsClass = type[Settings]
# Longest name of a file or directory on common file systems.
_MAX_NAME_BYTES = 255


class RunSettings(Settings):
    """Config of one run."""

    format_version: Literal[1] = Field(1, description="version of the format of this file")
    name: str | None = Field(
        None,
        min_length=1,
        description="name of the run and of its directory runs/<name>; null: name of the config file",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of weights, split, batch order and synthetic samples")
    data: AnyDataSettings = Field(description="samples to train on and to validate on")
    model: ModelSettings = Field(description="encoder, quantizer and decoder")
    loss: LossSettings = Field(LossSettings(), description="loss and its weights")
    training: TrainingSettings = Field(TrainingSettings(), description="optimizer, validation and checkpoints")

    @field_validator("format_version", mode="before")
    @classmethod
    def _check_version(cls, version: Any) -> Any:
        if type(version) is not int or version != 1:
            raise ValueError(unsupported_version_message(version, 1, "use a config with format_version 1"))
        return version

    @field_validator("name")
    @classmethod
    def _check_directory_name(cls, name: str | None) -> str | None:
        if name is not None and (set(name) <= {"."} or any(c in "/\\" or not c.isprintable() for c in name)):
            raise ValueError("expected a directory name without slashes and control characters")
        if name is not None and len(name.encode()) > _MAX_NAME_BYTES:
            raise ValueError(f"expected a directory name of at most {_MAX_NAME_BYTES} bytes")
        return name


def settings_by_kind(block: SettingsClass, key: str) -> dict[str, SettingsClass]:
    """Return the settings classes that a key of a block accepts, by `kind`.

    If there is only one class, its `kind` is "". A key of a single value, or an unknown key, gives {}.
    """
    field = block.model_fields.get(key)
    members = _settings_classes(field.annotation) if field else []
    if len(members) == 1:
        return {"": members[0]}
    return {str(member.model_fields["kind"].default): member for member in members}


def settings_class_at(root: SettingsClass, values: Any, path: tuple[str | int, ...]) -> SettingsClass | None:
    """Return the settings class at a key path of a config, selected by each `kind` in its `values`.

    Return None if the path leads to a single value, to an unknown key, or to a block without a valid `kind`.
    """
    block: SettingsClass | None = root
    for key in path:
        if block is None or not isinstance(values, dict):
            return None
        values = values.get(str(key))
        members = settings_by_kind(block, str(key))
        kind = values.get("kind") if isinstance(values, dict) else None
        block = members.get("") or members.get(str(kind))
    return block


def _settings_classes(annotation: Any) -> list[SettingsClass]:
    """Return the settings classes in a type annotation: the class itself, or the members of a union."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [member for argument in get_args(annotation) for member in _settings_classes(argument)]
