"""Pretrained encoders: how they are loaded, and which of their parameters may change. Nothing is trained here."""
