"""The controller: submit, observe, decide, apply. Safe to run twice, and to lose at any moment."""
