"""What :func:`bptt.check_module` returns, and what is in the report of :func:`bptt.audit`."""

from bptt._src.audit.finding import Finding
from bptt._src.audit.report import Compared
from bptt._src.module_check.result import Check, ModuleCheck, WrongNumber

__all__ = ["Check", "Compared", "Finding", "ModuleCheck", "WrongNumber"]
