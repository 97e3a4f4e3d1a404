"""What only a GPU can say, in ten minutes, as one record."""
