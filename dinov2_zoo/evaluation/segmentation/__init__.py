"""Semantic segmentation from frozen features: a linear layer on the map, sliding windows, mean IoU."""
