"""Runs a plan: one call of the command, the driver, and jobs as trials on Ray Tune or in one process; nothing is shown
here.
"""
