"""Knowledge as priors: one small map per training image."""
