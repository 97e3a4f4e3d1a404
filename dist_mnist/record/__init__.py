"""Everything a run leaves behind, on disk and in wandb."""
