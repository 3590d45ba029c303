"""Names of the heads and strategies that commands choose among; importing them needs no library."""

HEADS = ("regression", "final")  # the primary classifier's, and the final one's with its heat map
STRATEGIES = ("random", "uncertainty", "anomaly", "both", "diverse_both")
DEFAULT_STRATEGY = "both"  # ahead of random choice on one of two sets, and behind it on none (docs/labelling.md)

__all__ = ["DEFAULT_STRATEGY", "HEADS", "STRATEGIES"]
