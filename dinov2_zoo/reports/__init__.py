"""What people look at after a run: loss curves, pictures of features, one self-contained page."""
