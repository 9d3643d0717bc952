"""The gallery holds no tests; collected for doctests, its loops would be listed twice."""

collect_ignore = ["gallery"]
