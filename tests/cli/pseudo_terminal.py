"""Commands on a terminal of their own, and what is on its screen then."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

_PIECES = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)|(\x1b)")


class Terminal:
    """A process that has a terminal for its streams.

    Args:
        arguments: of ``bptt``.
        columns: its width.
        environment: variables besides those of this process.
        stderr: where its errors go, if not to the terminal.
        program: what Python runs.
    """

    def __init__(self, *arguments, columns=80, environment=None, stderr=None, cwd=None,
                 program=("-m", "bptt")):  # fmt: skip
        self.master, slave = pty.openpty()
        self.columns = columns
        self.resize(columns)
        env = {**os.environ, "TERM": "xterm-256color", **(environment or {})}
        for name in ("COLUMNS", "LINES", "FORCE_COLOR", *({"NO_COLOR"} - {*(environment or {})})):
            env.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            stdin=slave, stdout=slave, stderr=slave if stderr is None else stderr,
            cwd=cwd, env=env, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self.written = b""

    def resize(self, columns: int) -> None:
        """Make it so wide."""
        self.columns = columns
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        """Type; Ctrl-C is b"\\x03"."""
        os.write(self.master, keys)

    def wait_for(self, pattern: str, seconds: float = 60.0) -> str:
        """Read until something has been written that matches; return all of it."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            assert time.monotonic() < end, f"no {pattern} in {self.text!r}"
            assert self._read(0.1), f"ended without {pattern}: {self.text!r}"
        return self.text

    def end(self, seconds: float = 60.0) -> int:
        """Read to the end; return the status."""
        end = time.monotonic() + seconds
        while self._read(0.1):
            assert time.monotonic() < end, f"no end of {self.text!r}"
        return self.process.wait(seconds)

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)

    @property
    def text(self) -> str:
        return self.written.decode(errors="replace")

    def _read(self, seconds: float) -> bool:
        if not select.select([self.master], [], [], seconds)[0]:
            return True
        try:
            piece = os.read(self.master, 65536)
        except OSError:  # of Linux, where nobody has the other end any more
            piece = b""
        self.written += piece
        return bool(piece)


class Screen:
    """What a terminal shows of what was written to it; it has no last line.

    Only the controls that a display in lines needs are known; others are an error.
    """

    def __init__(self, columns: int) -> None:
        self.columns, self.lines = columns, [""]
        self.row = self.column = 0
        self.cursor_is_shown = True
        self.styles: set[str] = set()

    def feed(self, text: str) -> Screen:
        """Show a text."""
        for numbers, control, end, plain, other in _PIECES.findall(text):
            assert not other, f"an unknown control in {text!r}"
            if control:
                self._obey(numbers, control)
            elif end == "\r":
                self.column = 0
            elif end == "\n":
                self._down()
            else:
                for character in plain:
                    self._put(character)
        return self

    def _obey(self, numbers: str, control: str) -> None:
        if control == "m":
            self.styles |= {*numbers.split(";")} - {"0", ""}
        elif control == "A":
            self.row = max(0, self.row - int(numbers or 1))
        elif (numbers, control) == ("2", "K"):
            self.lines[self.row] = ""
        elif numbers == "?25":
            self.cursor_is_shown = control == "h"
        else:
            raise AssertionError(f"unknown: CSI {numbers} {control}")

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    def _put(self, character: str) -> None:
        if self.column == self.columns:
            self.column = 0
            self._down()
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
        self.column += 1

    @property
    def shown(self) -> list[str]:
        """The lines, without what is blank at their ends."""
        return [line.rstrip() for line in self.lines]
