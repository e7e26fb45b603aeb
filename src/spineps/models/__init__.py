"""What a model is, which models exist, and how one is found by name."""
