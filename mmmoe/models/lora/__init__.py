"""The adapter grammar shared by all families: experts, router, layer, balance, inject."""
