"""Datasets: read, check, split and decode."""
