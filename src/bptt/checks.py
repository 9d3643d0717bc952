"""What :func:`bptt.check_module` returns."""

from bptt._src.module_check.result import Check, ModuleCheck, WrongNumber

__all__ = ["Check", "ModuleCheck", "WrongNumber"]
