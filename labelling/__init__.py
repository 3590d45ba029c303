"""What labels are worth: how many are enough, which images to label next, which labels look wrong."""
