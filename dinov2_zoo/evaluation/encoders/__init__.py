"""What is evaluated: encoders of every origin, and the features they give."""
