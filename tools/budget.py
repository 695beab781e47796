"""Run a test command and hold the time it took against its budget.

budget.py SECONDS COMMAND...

Going over it is a warning: a slow or busy machine is nobody's fault. It is a failure (exit code 1)
where CI says that it may be: CI=true in the environment.
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
    if code or took <= budget:
        return code
    binding = os.environ.get("CI", "").lower() in ("true", "1")
    word = "error" if binding else "warning"
    print(f"{word}: over budget: {' '.join(command)}", file=sys.stderr)
    return int(binding)


if __name__ == "__main__":
    sys.exit(main())
