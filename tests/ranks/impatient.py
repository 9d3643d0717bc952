"""``bptt`` that takes a process for lost when it is silent for 15 seconds."""

from datetime import timedelta

from bptt._src.cli import main
from bptt._src.language_model import job

if __name__ == "__main__":
    job._STALLED = timedelta(seconds=15)
    main()
