"""From files of any kind to the batches that training and evaluation take."""
