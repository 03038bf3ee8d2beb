"""A run's checkpoints: written while it trains, listed, checked, resumed from."""
