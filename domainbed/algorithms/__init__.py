"""Algorithms: one file each, found by the registry. `base` holds the contract."""
