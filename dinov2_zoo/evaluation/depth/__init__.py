"""Depth from frozen features: lin.1, lin.4 and DPT heads, their training, and the metrics of NYUv2 and KITTI."""
