"""Published checkpoints as plain arrays: nnU-Net v2, the Lightning 3-D U-Net, the VERIDAH DenseNet.  No torch."""
