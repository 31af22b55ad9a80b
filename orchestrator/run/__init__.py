"""Carrying a plan out: one call of the command, the driver, and jobs as trials on Ray Tune or in one process; nothing
is drawn or told here.
"""
