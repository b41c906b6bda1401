"""Data: shards, the order they are read in, templates and batches."""
