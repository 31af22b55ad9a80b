"""Metrics and bootstrap intervals; what is graded is decided elsewhere."""
