"""GatedActivation: the element-wise middle of a gated feed-forward block."""
