"""Maps of what a classifier looks at, one method a few lines."""
