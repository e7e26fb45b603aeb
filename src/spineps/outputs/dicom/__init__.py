"""DICOM in and out: series of a folder (``series``), their conversion (``convert``), segmentation objects (``seg``)."""
