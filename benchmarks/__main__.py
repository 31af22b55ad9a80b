"""Every part against its plain reference, one after the other: about 45 minutes and 20 GiB.

Writes speed.md, speed.json and growth.png. Each part runs alone too: `python -m benchmarks.train`, and so on.
"""

from __future__ import annotations

import importlib

from benchmarks.results import PARTS, command

if __name__ == "__main__":
    command({part: importlib.import_module(f"benchmarks.{part}").rows for part in PARTS}, __doc__)
