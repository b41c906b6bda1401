"""Configuration: YAML files into strict specs, with every error told at once."""
