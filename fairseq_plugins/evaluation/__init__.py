"""From a trained run to scores that can be quoted."""
