"""The base of every settings class: frozen, strict numbers, no NaN, no unknown key."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """One block of the config. A component's settings stand beside the component and know how to build it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
