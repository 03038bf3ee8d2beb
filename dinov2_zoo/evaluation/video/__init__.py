"""Masks carried through a video."""
