"""Figures and pages of results computed elsewhere; only this package loads matplotlib."""
