"""The group level: what all scans of a data set have come to, as tables and as a page to look through."""
