"""Two numbers that data and models agree on (LLaVA-1.5's values)."""

IMAGE_ID = -200
"""Stands in the token ids for one image; models put the image's tokens in its place."""

IGNORE_ID = -100
"""Label of a position that has no target."""
