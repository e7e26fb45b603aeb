"""The steps of a segmentation: arrays in, arrays out."""
