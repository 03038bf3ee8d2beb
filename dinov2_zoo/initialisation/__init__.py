"""A student's and its heads' first weights: fitted, selected or drawn."""
