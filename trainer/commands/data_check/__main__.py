"""`python -m trainer.commands.data_check`: see trainer.commands.tool for what it reads and says."""

from __future__ import annotations

import sys

from trainer.commands.tool import main

if __name__ == "__main__":
    sys.exit(main("datacheck"))
