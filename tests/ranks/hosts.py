"""Two machines, as two network namespaces of this one, joined by a cable of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGKILL

from ranks.launched import environment

ADDRESSES = ("10.213.7.1", "10.213.7.2")
# A host has its own directory, and does not see the other's: an empty one lies over it.
_ON_HOST = 'mount -t tmpfs none "$1" && cd "$2" && shift 2 && exec "$@"'


class Host:
    """One of the machines.

    Args:
        number: 0 or 1.
        directories: of both.
    """

    def __init__(self, number: int, directories: Sequence[Path]) -> None:
        self.number, self.directory = number, directories[number]
        self.hidden = directories[1 - number]
        self.namespace = f"bptt-{os.getpid()}-{number}"
        self.link = f"bptt{number}"
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *command: str, **more: str) -> subprocess.Popen[str]:
        """Start a command in the host's directory; what it prints goes into a file there."""
        more = {
            "BPTT_CACHE": str(self.directory / "cache"),
            "GLOO_SOCKET_IFNAME": self.link,
            **more,
        }
        with (self.directory / "printed").open("a") as printed:
            process = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self.namespace, "sh", "-c", _ON_HOST, "sh"),
                    *(str(self.hidden), str(self.directory), *command),
                ],
                env=environment(**more),
                stdout=printed,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.started.append(process)
        return process

    def torchrun(self, *arguments: str, processes: int = 1, **more: str) -> subprocess.Popen[str]:
        """Start this host's processes of a job of both hosts."""
        return self.start(
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"),
            *("--nproc-per-node", str(processes), "--rdzv-backend", "c10d", "--rdzv-id", "job"),
            *("--rdzv-endpoint", f"{ADDRESSES[0]}:29400"),
            # torchrun looks for the address under this machine's name, which both hosts have.
            *("--rdzv-conf", f"is_host={int(self.number == 0)}"),
            *("--local-addr", ADDRESSES[self.number], "--monitor-interval", "0.1"),
            *arguments,
            **more,
        )

    @property
    def printed(self) -> str:
        """What the host's commands have printed."""
        return (self.directory / "printed").read_text()

    def pull_cable(self) -> None:
        """Cut the connection; nobody is told."""
        _ip("-n", self.namespace, "link", "set", self.link, "down")

    def give_up_soon(self) -> None:
        """Let TCP try again 3 times, for seconds; by default it is 15 times, for 15 minutes."""
        setting = Path("/proc/sys/net/ipv4/tcp_retries2")
        _ip("netns", "exec", self.namespace, "sh", "-c", f"echo 3 > {setting}")

    def kill(self) -> None:
        """End all that runs there, as a power cut does, but with the connections closed."""
        for pid in _ip("netns", "pids", self.namespace).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), SIGKILL)


def why_not() -> str | None:
    """Return why there are no such hosts here; None if there are."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if shutil.which("ip") is None:
        return "needs the command ip (Debian: apt-get install iproute2)"
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    try:
        with two_hosts([Path("/"), Path("/")]):
            return None
    except subprocess.CalledProcessError as e:
        return f"no network namespaces here: {e.stderr.strip()}"


@contextmanager
def two_hosts(directories: Sequence[Path]) -> Iterator[list[Host]]:
    """Set up two hosts with a cable between them.

    Args:
        directories: one for each.
    """
    hosts = [Host(number, directories) for number in range(2)]
    try:
        for host in hosts:
            _ip("netns", "add", host.namespace)
        first, second = hosts
        _ip(
            *("link", "add", first.link, "netns", first.namespace, "type", "veth"),
            *("peer", "name", second.link, "netns", second.namespace),
        )
        for host, address in zip(hosts, ADDRESSES, strict=True):
            _ip("-n", host.namespace, "address", "add", f"{address}/24", "dev", host.link)
            _ip("-n", host.namespace, "link", "set", host.link, "up")
            _ip("-n", host.namespace, "link", "set", "lo", "up")
        yield hosts
    finally:
        for host in hosts:
            with suppress(subprocess.CalledProcessError):  # it was never there
                host.kill()
                _ip("netns", "delete", host.namespace)
            for process in host.started:
                process.wait()


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout
