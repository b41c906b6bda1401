"""Frozen encoders, one a file."""
