"""What the scripts share: the console, the run folder, the training loop, curves, checkpoints."""
