"""Weights on disk: ours, Meta's, timm's and transformers' names, heads, and checkpoints of a run."""
