"""Benchmarks, plain text and the rows of both, and what must not be in them; where bytes come from is in `sources`."""
