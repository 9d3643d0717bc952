"""A gradcheck for recurrences."""
