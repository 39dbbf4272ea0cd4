"""The program with smaller ranges, so that a file is soon on its way over several connections, and there."""

from __future__ import annotations

from tests.faults.test_detectors import Change

RANGE, RANGED = 2**20, 2**22
SMALLER = (
    Change("transports/ranges.py", "RANGE = 2**23", f"RANGE = {RANGE}"),
    Change("transports/ranges.py", "RANGED = 2**25", f"RANGED = {RANGED}"),
    Change("transports/ranges.py", "ON_THE_WAY = 2**22", f"ON_THE_WAY = {RANGE // 2}"),
)
"""Eight times."""
