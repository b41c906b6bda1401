"""Top-k routing: logits to gates, experts, counts, offsets, order and inverse."""
