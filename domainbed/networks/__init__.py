"""Torch modules and nothing else: no loss, no optimiser, no registry."""
