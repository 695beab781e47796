"""`python -m trainer.datacheck`: see trainer.tool for what it reads and says."""

from __future__ import annotations

import sys

from trainer.tool import main

if __name__ == "__main__":
    sys.exit(main("datacheck"))
