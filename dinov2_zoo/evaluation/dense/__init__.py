"""What depth and segmentation share: images with a target for every pixel, and the training of a head on frozen maps."""
