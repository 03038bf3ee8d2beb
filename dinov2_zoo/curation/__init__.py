"""From a raw pool of images to a curated training set."""
