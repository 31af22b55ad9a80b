"""How long a test waits for another process."""

from __future__ import annotations

PATIENCE = 1200.0
"""Seconds; many times what anything takes on a slow machine, since the limit is there for what hangs."""
