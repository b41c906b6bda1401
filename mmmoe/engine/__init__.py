"""Engines: DeepSpeed and plain torch behind one protocol, checkpoints, metrics and the loop."""
