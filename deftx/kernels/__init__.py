"""Arithmetic that torch and transformers lack, or do with more memory: a loss over a large vocabulary.

No training loop and no data here.
"""
