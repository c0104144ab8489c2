"""Next-clean-token tuning for any causal image model."""
