"""The fast path: a whole sequence of one layer at once, forward and backward."""

from bptt._src.engines.backend import Backend, backend, not_native, use

__all__ = ["Backend", "backend", "not_native", "use"]
