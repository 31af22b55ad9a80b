"""The report of a sweep: its numbers, words, tables and pictures, from what the store holds; nothing is run for it."""
