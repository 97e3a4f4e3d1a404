"""The page where you draw, and its API."""
