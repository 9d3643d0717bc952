"""The loop over time for any module: it executes a plan."""
