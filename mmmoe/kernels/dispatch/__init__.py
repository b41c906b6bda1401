"""Rows of tokens to the order of experts: read once, written K times."""
