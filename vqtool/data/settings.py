"""The data block of the config."""

from typing import Annotated, Literal

from pydantic import Field

from vqtool.data.layout import LayoutName
from vqtool.data.spec import DtypeName
from vqtool.data.synthetic import SyntheticSource
from vqtool.settings import Settings

Auto = Literal["auto"]

# Integers beyond are ids or measurements, not classes: each class costs a row of the embedding and of the logits.
MOST_CLASSES = 1 << 20
# No file can be opened by a longer one.
LONGEST_PATH = 4096


class DataSettings(Settings):
    """What is said of any data. All that is `auto` follows from the array, and stands resolved in the run's config."""

    validation: Annotated[float, Field(gt=0, lt=1)] | Annotated[str, Field(min_length=1, max_length=LONGEST_PATH)] = (
        Field(0.1, description="the fraction held out at random, or a path to data of its own")
    )
    layout: LayoutName | Auto = Field("auto", description="the axes of a row: C channels, T steps, H by W pixels")
    channels: Annotated[int, Field(ge=1)] | Auto = Field("auto", description="C")
    size: list[int] | Auto = Field("auto", description="[T] or [H, W]; [] for vectors")
    classes: Annotated[int, Field(ge=1, le=MOST_CLASSES)] | Auto | None = Field(
        "auto", description="number of classes of an integer grid; auto: the largest one found, and one; null: values"
    )
    dtype: DtypeName | Auto = Field("auto", description="the type of the array")
    normalize: Literal["none", "global", "feature"] = Field(
        "global", description="one mean and scale, or one a channel, fitted on the training part; never for classes"
    )


class TensorsSettings(DataSettings):
    """The user's own tensors."""

    kind: Literal["tensors"] = "tensors"
    path: str = Field(
        min_length=1, max_length=LONGEST_PATH, description="a tensor file, a folder of them in name order, or a glob"
    )
    key: str | None = Field(None, max_length=LONGEST_PATH, description="the name of the array in a file of several")


class SyntheticSettings(DataSettings):
    """Made-up samples, a function of the run's seed."""

    kind: Literal["synthetic"] = "synthetic"
    samples: int = Field(10_000, ge=2, le=100_000_000, description="how many, the validation part included")
    source: SyntheticSource = Field(description="what they are")


DataKind = Annotated[TensorsSettings | SyntheticSettings, Field(discriminator="kind")]
