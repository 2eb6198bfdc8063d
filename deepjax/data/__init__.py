"""Data: sets in three splits, loaders with a reproducible order, standardization and augmentation."""

from deepjax.data.augment import augment, change_colours
from deepjax.data.augment import check as check_augment
from deepjax.data.colour import lighting_components
from deepjax.data.crops import check_crops, photograph_crops, read_crops, resizing
from deepjax.data.images import read_image
from deepjax.data.loaders import DeviceLoader, HostLoader, epoch_order, make_loader
from deepjax.data.mixing import mix
from deepjax.data.prepare import prepare
from deepjax.data.records import Arrays, Dataset, Records
from deepjax.data.sources import available, load
from deepjax.data.standardize import Standardizer, channel_statistics, standardize

__all__ = [
    "Arrays",
    "Dataset",
    "DeviceLoader",
    "HostLoader",
    "Records",
    "Standardizer",
    "augment",
    "available",
    "change_colours",
    "channel_statistics",
    "check_augment",
    "check_crops",
    "epoch_order",
    "lighting_components",
    "load",
    "make_loader",
    "mix",
    "photograph_crops",
    "prepare",
    "read_crops",
    "read_image",
    "resizing",
    "standardize",
]
