"""Names of the heads and strategies that commands choose among; importing them needs no library."""

HEADS = ("regression", "final")  # the primary classifier's, and the final one's with its heat map
STRATEGIES = (
    "random", "uncertainty", "anomaly", "both", "diversity", "diverse_uncertainty", "diverse_anomaly", "diverse_both",
)  # fmt: skip
DEFAULT_STRATEGY = "diverse_both"

__all__ = ["DEFAULT_STRATEGY", "HEADS", "STRATEGIES"]
