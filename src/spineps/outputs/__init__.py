"""The one sink: every name, dtype, header and sidecar of what is written to disk."""
