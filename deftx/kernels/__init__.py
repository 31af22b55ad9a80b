"""Arithmetic that torch and transformers lack, or do with more memory: lookups, sampled gradients, losses, dropout.

No training loop and no data here.
"""
