"""The fast path: a whole sequence of one layer at once, forward and backward."""
