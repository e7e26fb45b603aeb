"""Finding scans, and telling which model may look at which."""
