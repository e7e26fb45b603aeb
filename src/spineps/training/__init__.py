"""Training of the bundled models: ``python -m spineps.training --help``.

A training step needs torch, numpy and scipy, nothing else, so that it runs on a bare GPU machine as well.
"""
