"""Stages as data, their addresses, the names of their files and the store that keeps their results; what they run is
in `method`.
"""
