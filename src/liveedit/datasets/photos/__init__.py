"""A benchmark of photographs in VLKEB's manner, made from any folder of class folders."""
