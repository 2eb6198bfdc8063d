"""Data: sets in three splits, loaders with a reproducible order, standardization and augmentation."""

from deepjax.data.augment import augment
from deepjax.data.augment import check as check_augment
from deepjax.data.images import read_image
from deepjax.data.loaders import DeviceLoader, HostLoader, epoch_order, make_loader
from deepjax.data.prepare import prepare
from deepjax.data.records import Arrays, Dataset, Records
from deepjax.data.sources import available, load
from deepjax.data.standardize import channel_statistics, standardize

__all__ = [
    "Arrays",
    "Dataset",
    "DeviceLoader",
    "HostLoader",
    "Records",
    "augment",
    "available",
    "channel_statistics",
    "check_augment",
    "epoch_order",
    "load",
    "make_loader",
    "prepare",
    "read_image",
    "standardize",
]
