"""Attention to a few points of several maps, read between their cells."""
