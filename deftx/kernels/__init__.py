"""Arithmetic that torch and transformers do not have or do not have sparingly enough: lookups, sampled gradients,
losses, dropout; no loop and no data.
"""
