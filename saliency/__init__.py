"""Saliency maps of image classifiers."""
