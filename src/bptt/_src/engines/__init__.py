"""A whole sequence of one layer at once: the engines, and the choice among them."""
