"""What depth and segmentation share: images with a target for every pixel, and how a head on frozen maps is trained."""
