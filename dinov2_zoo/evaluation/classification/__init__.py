"""k-NN, linear probes and logistic regression on labelled images."""
