"""Data sets: images and texts."""
