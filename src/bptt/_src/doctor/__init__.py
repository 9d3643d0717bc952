"""What runs on this machine, what is missing and what it costs, and what to do about it.

It is asked for where something does not work. So it takes Python's standard library alone, and
everything that could fail to load is loaded in a process of its own.
"""

from bptt._src.doctor.checkup import examine
from bptt._src.doctor.diagnosis import Checkup, Diagnosis

__all__ = ["Checkup", "Diagnosis", "examine"]
