"""What a frozen encoder is worth: features of a source, k-NN, agreement with a teacher, tables."""
