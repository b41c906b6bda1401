"""Tensor operations with one signature and several back ends; one folder an op."""
