"""The command line. Thin: it asks the controller and shows the answer."""
