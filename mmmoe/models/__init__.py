"""Models: towers, connectors, language models and the adapters between them."""
