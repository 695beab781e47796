"""Run a test command, print how long it took, and fail if it took longer than its budget.

budget.py SECONDS COMMAND...
"""

from __future__ import annotations

import os
import subprocess
import sys
import time


def main() -> int:
    budget, command = float(sys.argv[1]), sys.argv[2:]
    start = time.monotonic()
    code = subprocess.call(command)
    took = time.monotonic() - start
    load = os.getloadavg()[0]
    print(f"took {took:.0f} s of {budget:.0f} s (load {load:.1f} on {os.cpu_count()} cores)")
    if code == 0 and took > budget:
        print(f"over budget: {' '.join(command)}", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
