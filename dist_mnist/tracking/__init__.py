"""Trackers of a run besides its journal: wandb, TensorBoard, CSV."""
