"""The controller, the command line and the node agent of qvl-orchestrate."""

__version__ = "0.1.0"
