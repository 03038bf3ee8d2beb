"""Retrieval of landmarks and artworks."""
