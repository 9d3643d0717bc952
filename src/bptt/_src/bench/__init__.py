"""How the bench measures: rows, timing, and what it compares with."""
