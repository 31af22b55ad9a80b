"""A sparse fine-tuning as an object: read, written, added to a model and taken off, exported; how one is learnt is in
`train` and `method`.
"""
