"""Settings of the `data` block of the config."""

from typing import Annotated, Literal

from pydantic import Field

from vqtool.data.layout import DtypeName, LayoutName
from vqtool.data.synthetic import SyntheticSource
from vqtool.runtime.settings import Settings

Auto = Literal["auto"]

# Larger integers are ids or measurements, not classes: each class costs a row of the embedding and of the logits.
MAX_CLASSES = 1 << 20
# PATH_MAX of Linux: longer paths cannot be opened.
MAX_PATH_CHARS = 4096


class DataSettings(Settings):
    """Settings of any data. `auto` values are inferred from the array and stored resolved in the run's config."""

    validation: Annotated[float, Field(gt=0, lt=1)] | Annotated[str, Field(min_length=1, max_length=MAX_PATH_CHARS)] = (
        Field(0.1, description="fraction of rows held out at random, or path of separate validation data")
    )
    layout: LayoutName | Auto = Field(
        "auto", description="axes of a row: C channels, T steps, H and W pixels; auto: inferred from shape and dtype"
    )
    channels: Annotated[int, Field(ge=1)] | Auto = Field("auto", description="number of channels; auto: from the array")
    size: list[int] | Auto = Field(
        "auto", description="size of a sample without channels: [T], [H, W], or [] for vectors; auto: from the array"
    )
    classes: Annotated[int, Field(ge=1, le=MAX_CLASSES)] | Auto | None = Field(
        "auto", description="number of classes of integer grids; auto: largest class in the data + 1; null: not classes"
    )
    dtype: DtypeName | Auto = Field("auto", description="dtype of the array; auto: from the array")
    normalize: Literal["none", "global", "feature"] = Field(
        "global",
        description="normalisation by mean and scale of the training split; global: one pair; feature: one per channel",
    )


class TensorsSettings(DataSettings):
    """Arrays in files."""

    kind: Literal["tensors"] = "tensors"
    path: str = Field(
        min_length=1,
        max_length=MAX_PATH_CHARS,
        description="tensor file (.npy, .npz, .safetensors, .pt), directory of such files in name order, or glob",
    )
    key: str | None = Field(
        None, max_length=MAX_PATH_CHARS, description="name of the array, for files that hold several"
    )


class SyntheticSettings(DataSettings):
    """Generated samples, a function of the run's seed."""

    kind: Literal["synthetic"] = "synthetic"
    samples: int = Field(10_000, ge=2, le=100_000_000, description="number of samples, including the validation split")
    source: SyntheticSource = Field(description="generator of the samples")


# `kind` selects the settings class.
AnyDataSettings = Annotated[TensorsSettings | SyntheticSettings, Field(discriminator="kind")]
