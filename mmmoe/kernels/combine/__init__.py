"""Rows of experts back to tokens: weighted by the gates and summed."""
