"""Data sets in three splits, loaders with a reproducible order, standardization and augmentation."""

from deepjax.data.augment import augment, change_colors
from deepjax.data.augment import check as check_augment
from deepjax.data.balance import check_balance, class_weights, describe_balance
from deepjax.data.color import lighting_components
from deepjax.data.crops import check_crops, photograph_crops, read_crops, resizing
from deepjax.data.images import SUFFIXES as IMAGE_SUFFIXES
from deepjax.data.images import read_image
from deepjax.data.listing import find_images
from deepjax.data.loaders import DeviceLoader, HostLoader, epoch_order, make_loader
from deepjax.data.loading import About, about, check_fields, load
from deepjax.data.mixing import mix
from deepjax.data.prepare import prepare
from deepjax.data.records import Arrays, Dataset, Records
from deepjax.data.sample import write_sample
from deepjax.data.sources import available
from deepjax.data.sources.arrays import as_dataset, from_arrays
from deepjax.data.sources.table import read_table
from deepjax.data.standardize import Standardizer, channel_statistics, standardize
from deepjax.data.views import center_crop, cropped_shape, view

__all__ = [
    "IMAGE_SUFFIXES",
    "About",
    "Arrays",
    "Dataset",
    "DeviceLoader",
    "HostLoader",
    "Records",
    "Standardizer",
    "about",
    "as_dataset",
    "augment",
    "available",
    "center_crop",
    "change_colors",
    "channel_statistics",
    "check_augment",
    "check_balance",
    "check_crops",
    "check_fields",
    "class_weights",
    "cropped_shape",
    "describe_balance",
    "epoch_order",
    "find_images",
    "from_arrays",
    "lighting_components",
    "load",
    "make_loader",
    "mix",
    "photograph_crops",
    "prepare",
    "read_crops",
    "read_image",
    "read_table",
    "resizing",
    "standardize",
    "view",
    "write_sample",
]
