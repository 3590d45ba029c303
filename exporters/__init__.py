"""Export of trained classifiers for deployment."""
