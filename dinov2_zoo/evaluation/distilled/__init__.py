"""What a distillation reached: agreement with its teacher on held-out images."""
