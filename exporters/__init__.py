"""Deployable graphs."""
