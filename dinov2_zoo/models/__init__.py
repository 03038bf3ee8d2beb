"""Vision Transformers of DINOv2's shapes, students of other shapes, heads, and weights chosen from a teacher."""
