"""``python -m bptt`` is ``bptt``."""

from bptt._src.cli import main

if __name__ == "__main__":
    main()
