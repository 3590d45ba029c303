"""Predictions, metrics, calibration, visualization and the report."""
