"""Train recurrent networks through time.

The public names of the package are the ones imported here; everything else is private.
"""

__version__ = "0.1.0.dev0"
