"""Data: images by row, random views of them, batches."""

from falseneg.data.captions import caption_groups
from falseneg.data.digits import Digits
from falseneg.data.folder import FileList, Folder
from falseneg.data.hugging_face import HuggingFace
from falseneg.data.image_set import EncodedSet, ImageSet, Subset, align_classes, split_holdout
from falseneg.data.inspection import Inspection, find_duplicates, inspect
from falseneg.data.loader import EpochSampler, ViewLoader, ViewSample, ViewSet, collate, view_loader
from falseneg.data.parquet import Parquet
from falseneg.data.shards import Shards
from falseneg.data.table import Table
from falseneg.data.torchvision_sets import Cifar10, Cifar100, Torchvision
from falseneg.data.views import Augmentation, Crops, evaluation_view, view_generator_seed
from falseneg.data.wrapped import Wrapped, as_image_set

__all__ = [
    "Augmentation",
    "Cifar10",
    "Cifar100",
    "Crops",
    "Digits",
    "EncodedSet",
    "EpochSampler",
    "FileList",
    "Folder",
    "HuggingFace",
    "ImageSet",
    "Inspection",
    "Parquet",
    "Shards",
    "Subset",
    "Table",
    "Torchvision",
    "ViewLoader",
    "ViewSample",
    "ViewSet",
    "Wrapped",
    "align_classes",
    "as_image_set",
    "caption_groups",
    "collate",
    "evaluation_view",
    "find_duplicates",
    "inspect",
    "split_holdout",
    "view_generator_seed",
    "view_loader",
]
