"""Encoder and decoder families, one per file (`conv1d` and `conv2d` share conv.py)."""

from typing import Annotated

from pydantic import Field

from vqtool.models.encoders.base import NetSettings, Size
from vqtool.models.encoders.conv import Conv1dSettings, Conv2dSettings
from vqtool.models.encoders.identity import IdentitySettings
from vqtool.models.encoders.mlp import MlpSettings
from vqtool.models.encoders.transformer import TransformerSettings

# All families; `kind` selects one.
EncoderSettings = Annotated[
    IdentitySettings | MlpSettings | Conv1dSettings | Conv2dSettings | TransformerSettings,
    Field(discriminator="kind"),
]

__all__ = ["EncoderSettings", "NetSettings", "Size"]
