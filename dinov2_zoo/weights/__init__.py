"""Weights of a backbone and its heads, in four layouts: read, written, mapped from one to another."""
