"""Where jobs run. Each backend is independent of the others; the controller knows `base`."""
