"""The embedded default: this machine, no scheduler. One process group an attempt."""
