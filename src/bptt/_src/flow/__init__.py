"""How far the gradient reaches: how it is measured, and what follows from it."""
