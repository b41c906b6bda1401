"""One file a family: assembly only."""
