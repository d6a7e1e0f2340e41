"""Encoder and decoder families, one per file."""

from typing import Annotated

from pydantic import Field

from vqtool.models.encoders.base import NetSettings, Size
from vqtool.models.encoders.conv1d import Conv1dSettings
from vqtool.models.encoders.conv2d import Conv2dSettings
from vqtool.models.encoders.identity import IdentitySettings
from vqtool.models.encoders.mlp import MlpSettings
from vqtool.models.encoders.transformer import TransformerSettings

# The one table of families, selected by `kind`.
EncoderSettings = Annotated[
    IdentitySettings | MlpSettings | Conv1dSettings | Conv2dSettings | TransformerSettings,
    Field(discriminator="kind"),
]

__all__ = ["EncoderSettings", "NetSettings", "Size"]
