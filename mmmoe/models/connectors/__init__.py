"""Modules that carry encoder features into the language model's width."""
