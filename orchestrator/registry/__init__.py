"""The index of this user's runs on this machine; it can be rebuilt from the run directories."""
