"""`doctor`: what of this place endangers a run."""
