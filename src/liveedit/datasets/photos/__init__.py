"""A benchmark of photographs in VLKEB's manner, made from any folder of class folders."""

from .catalog import PhotoClass, photo_classes, read_classes
from .folder import PhotoFolder, read_folder
from .nearness import Features, pixel_features
from .write import WrittenPhotos, write_photos

__all__ = [
    "Features",
    "PhotoClass",
    "PhotoFolder",
    "WrittenPhotos",
    "photo_classes",
    "pixel_features",
    "read_classes",
    "read_folder",
    "write_photos",
]
