"""Evaluation: benchmarks, metrics and the runner; knows a model only as generate() and score()."""
