"""What a student is asked to match: the losses, one idea a file, and their sum."""
