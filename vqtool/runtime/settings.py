"""Base class of all settings."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """One block of the config: frozen, strict types, no NaN or infinity, no unknown keys.

    Settings of a component are defined beside the component and build it.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
