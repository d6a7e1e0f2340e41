"""Synthetic sources, seeded: for trying things out, and for known answers."""

from typing import Annotated

from pydantic import Field

from vqtool.data.synthetic.gaussian import GaussianSettings
from vqtool.data.synthetic.mixture import MixtureSettings
from vqtool.data.synthetic.sinusoids import SinusoidsSettings
from vqtool.data.synthetic.textures import TexturesSettings
from vqtool.data.synthetic.tiles import TilesSettings

# The one table of synthetic sources: `kind` chooses.
SyntheticSource = Annotated[
    GaussianSettings | MixtureSettings | TexturesSettings | TilesSettings | SinusoidsSettings,
    Field(discriminator="kind"),
]

__all__ = ["GaussianSettings", "SyntheticSource"]
