"""Priors: what is known of where the defects are, one small map per training image."""
