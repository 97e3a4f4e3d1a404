"""Who else hears the numbers: wandb, TensorBoard, CSV."""
