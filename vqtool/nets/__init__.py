"""Encoder and decoder families, one per file."""

from typing import Annotated

from pydantic import Field

from vqtool.nets.base import NetSettings, Size
from vqtool.nets.conv1d import Conv1dSettings
from vqtool.nets.conv2d import Conv2dSettings
from vqtool.nets.identity import IdentitySettings
from vqtool.nets.mlp import MlpSettings
from vqtool.nets.transformer import TransformerSettings

# The one table of families, selected by `kind`.
EncoderSettings = Annotated[
    IdentitySettings | MlpSettings | Conv1dSettings | Conv2dSettings | TransformerSettings,
    Field(discriminator="kind"),
]

__all__ = ["EncoderSettings", "NetSettings", "Size"]
