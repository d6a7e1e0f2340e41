"""Where samples come from, and in what order."""

from vqtool.data.dataset import Dataset, Samples, open_dataset, open_source, spec_of
from vqtool.data.order import BatchOrder
from vqtool.data.settings import DataKind, DataSettings
from vqtool.data.sources import FileSource, Shard, Source, Survey
from vqtool.data.spec import SampleSpec

__all__ = [
    "BatchOrder",
    "DataKind",
    "DataSettings",
    "Dataset",
    "FileSource",
    "SampleSpec",
    "Samples",
    "Shard",
    "Source",
    "Survey",
    "open_dataset",
    "open_source",
    "spec_of",
]
