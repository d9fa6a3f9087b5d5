"""What this process holds."""

import os
from pathlib import Path


def resident() -> float:
    """Megabytes in memory now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
