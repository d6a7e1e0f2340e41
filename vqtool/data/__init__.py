"""Data: file formats, scanning, layouts, training and validation splits, batch order, synthetic sources."""

from vqtool.data.batch_order import BatchOrder
from vqtool.data.dataset import Dataset, Samples, open_dataset, open_source, spec_of, train_validation_split
from vqtool.data.layout import SampleSpec, sample_shape
from vqtool.data.settings import AnyDataSettings, DataSettings, SyntheticSettings, TensorsSettings
from vqtool.data.sources import DatasetScan, FileSource, Shard, Source
from vqtool.data.tensor_files import map_npy

__all__ = [
    "AnyDataSettings",
    "BatchOrder",
    "DataSettings",
    "Dataset",
    "DatasetScan",
    "FileSource",
    "SampleSpec",
    "Samples",
    "Shard",
    "Source",
    "SyntheticSettings",
    "TensorsSettings",
    "map_npy",
    "open_dataset",
    "open_source",
    "sample_shape",
    "spec_of",
    "train_validation_split",
]
