"""Training of both phases."""
