"""A run's step without its numbers: fake tensors in a fake process group, and what they would take on GPUs."""
