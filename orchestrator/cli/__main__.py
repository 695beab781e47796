"""`python -m orchestrator.cli`: the same as `qvl-orchestrate`."""

import sys

from orchestrator.cli.main import main

sys.exit(main())
