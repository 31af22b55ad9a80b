"""Benchmarks and plain text: their rows, and the rows that have to go. Where bytes come from is in `sources`."""
