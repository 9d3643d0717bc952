"""The processes that train one run together: what they add up, and how they agree.

PyTorch's distributed engine does the work. Rank 0 reads, writes and prints. Whatever only one
process can find out, the others learn from it, failures too, so that none waits for a message that
never comes; and where a process ends without a word, the others end as well, one of them with an
error that names it.
"""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from traceback import clear_frames
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from bptt._src.ranks import Ranks, ranks_of
from bptt.errors import ConfigError, DivergedError, ElsewhereError, RanksError, spelled

T = TypeVar("T")

_JOINING = timedelta(minutes=10)  # from the start of the first process to that of the last
_CONNECTING = timedelta(seconds=30)  # once all have started
_STALLED = timedelta(minutes=10)  # in an update, a process that is silent for so long is lost
_WAITING = timedelta(days=14)  # while a text is prepared; one that has died is noticed
_WORKING = timedelta(hours=1)  # afterwards: one may write or evaluate for so long
_PATIENCE = 5.0  # seconds in which all that are left say so
_FAILED, _LEFT, _HEARD = "bptt/failed", "bptt/left", "bptt/heard"


class Job:
    """This process among those that train together; alone, unless torch.distributed is initialised.

    All processes make it at the same time, and call its methods in the same order.
    """

    def __init__(self) -> None:
        self.ranks: Ranks = ranks_of()
        self._group: Any = None
        self._store: Any = None
        if not self.is_alone:
            self._store = dist.distributed_c10d._get_default_store()
            with self._hearing():
                self._group = dist.new_group(backend="gloo", timeout=_CONNECTING)
                dist.distributed_c10d._set_pg_timeout(_WAITING, self._group)

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.ranks.world_size == 1

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.ranks.rank == 0

    @property
    def leads_machine(self) -> bool:
        """Whether this is the process that prepares what all of its machine use.

        One whose number on its machine is not known prepares for itself.
        """
        return _from_environment("LOCAL_RANK", 0) == 0

    def prepared(self) -> None:
        """Note that from now on no process waits long for another."""
        if not self.is_alone:
            dist.distributed_c10d._set_pg_timeout(_WORKING, self._group)

    # ------------------------------------------------------------------------- messages

    def sum(self, x: Tensor) -> None:
        """Add up a tensor over all processes, in place; all get the same bits.

        Raises:
            RanksError: another process has ended.
        """
        if not self.is_alone:
            with self._hearing():
                dist.all_reduce(x)

    def sequences(self, x: Tensor, batch: int) -> Tensor:
        """Put together what the processes hold of their sequences, in dimension 1.

        Args:
            x: of this process's sequences, [A, b, ...].
            batch: the number of sequences of all, B.

        Returns:
            [A, B, ...], on all processes.
        """
        if self.is_alone:
            return x
        whole = x.new_zeros(x.shape[0], batch, *x.shape[2:])
        whole[:, self.ranks.own()] = x
        self.sum(whole)
        return whole

    def exchange(self, mine: T) -> list[T]:
        """Return every process's object, by rank."""
        if self.is_alone:
            return [mine]
        found: list[Any] = [None] * self.ranks.world_size
        with self._hearing():
            dist.all_gather_object(found, mine, group=self._group)
        return found

    def lead(self, work: Callable[[], T]) -> T:
        """Do something on rank 0 alone, and give all processes its result.

        Raises:
            ElsewhereError: it failed, on the others; on rank 0 the exception itself. A
                DivergedError is raised on all.
        """
        if self.is_alone:
            return work()
        box: list[Any] = [None, None]
        failure: BaseException | None = None
        if self.is_first:
            try:
                box[0] = work()
            except BaseException as e:
                failure = e
                box[1] = e.args if isinstance(e, DivergedError) else _in_words(e)
        with self._hearing(despite=failure):
            dist.broadcast_object_list(box, src=0, group=self._group)
        if failure is not None:
            raise failure
        if isinstance(box[1], tuple):
            raise DivergedError(*box[1])
        if box[1] is not None:
            raise ElsewhereError(f"rank 0 has failed: {box[1]}")
        return box[0]  # type: ignore[no-any-return]

    def together(self, work: Callable[[], T]) -> T:
        """Do something on all processes; none goes on unless all have done it.

        Raises:
            ElsewhereError: it failed on another process; where it failed, the exception itself,
                unless a lower rank has failed alike.
        """
        if self.is_alone:
            return work()
        failure: BaseException | None = None
        try:
            result = work()
        except BaseException as e:
            failure = e
        words = None if failure is None else _in_words(failure)
        found: list[Any] = [None] * self.ranks.world_size
        with self._hearing(despite=failure):
            dist.all_gather_object(found, words, group=self._group)
        first = next((r for r, w in enumerate(found) if w is not None), None)
        if failure is not None and found.index(words) == self.ranks.rank:
            raise failure
        if first is not None:
            raise ElsewhereError(f"rank {first} has failed: {found[first]}")
        return result

    # ------------------------------------------------------------------------- what failed

    def failed(self, e: BaseException) -> None:
        """Tell the others that this process ends, and wait until they have heard it.

        The store may lie in this process, and ends with it.
        """
        if self.is_alone:
            return
        rank, size = self.ranks
        try:
            if not isinstance(e, RanksError):
                self._store.set(_FAILED, f"rank {rank} has failed: {_in_words(e)}")
            for notice in (_LEFT, _HEARD):
                self._store.set(f"{notice}/{rank}", "")
            self._let_go()
            deadline = time.monotonic() + _PATIENCE
            while time.monotonic() < deadline:
                # Where another has died, it will not hear anything.
                all_ = self._noticed(_LEFT) if isinstance(e, RanksError) else range(size)
                if set(all_) <= set(self._noticed(_HEARD)):
                    break
                time.sleep(0.02)
        except RuntimeError:  # the store is gone, and so are the others
            return

    def left(self) -> None:
        """Leave the others, all of which leave."""
        self._group = None
        dist.destroy_process_group()

    def _let_go(self) -> None:
        """Close the connections, so that those who wait for this process hear that it ends."""
        self._group = None
        if dist.is_initialized():
            # gloo's thread may need Python's lock to end, while the destructor waits with it.
            with Path(os.devnull).open("w") as nowhere:
                faulthandler.dump_traceback_later(10, exit=True, file=nowhere)
                dist.destroy_process_group()
                faulthandler.cancel_dump_traceback_later()

    def _noticed(self, notice: str) -> list[int]:
        """The processes that have left this notice."""
        ranks = range(self.ranks.world_size)
        return [r for r in ranks if self._store.check([f"{notice}/{r}"])]

    @contextmanager
    def _hearing(self, despite: BaseException | None = None) -> Iterator[None]:
        """Explain why a message did not arrive; a failure of this process's own goes before."""
        try:
            yield
        except RuntimeError as e:  # as are all of torch.distributed
            clear_frames(e.__traceback__)  # which hold the connections
            raise (despite or self._lost(str(e))) from None

    def _lost(self, reason: str) -> RanksError:
        """Find out with those that are left who is not; the lowest of them reports it."""
        rank, size = self.ranks
        try:
            self._store.set(f"{_LEFT}/{rank}", "")
            self._let_go()
            deadline, left = time.monotonic() + _PATIENCE, [rank]
            while time.monotonic() < deadline and len(left) < size:
                if self._store.check([_FAILED]):
                    words = self._store.get(_FAILED).decode()
                    self._store.set(f"{_HEARD}/{rank}", "")
                    return ElsewhereError(words)
                time.sleep(0.02)
                left = self._noticed(_LEFT)
            self._store.set(f"{_HEARD}/{rank}", "")
        except RuntimeError:  # the store lay in the process of rank 0, unless torchrun keeps it
            what = "the others have" if rank == 0 else "rank 0 has"
            what += " ended without a word, perhaps killed"
            return RanksError(f"{what}: {_go_on()}") if rank < 2 else ElsewhereError(what)
        if len(left) == size:
            what = f"the {size} processes have lost each other ({reason.splitlines()[0]})"
        else:
            gone = ", ".join(str(r) for r in range(size) if r not in left)
            what = f"rank {gone} has ended without a word, perhaps killed"
        if rank != min(left):
            return ElsewhereError(what)
        return RanksError(f"{what}: {_go_on()}")


def _go_on() -> str:
    return f"start the job again, with {spelled('resume')} RUN, to go on from the last checkpoint"


def _in_words(e: BaseException) -> str:
    return str(e) or type(e).__name__


@contextmanager
def joined() -> Iterator[Job]:
    """Join the processes that the environment speaks of, as torchrun sets it, for a block.

    Raises:
        ConfigError: the environment is incomplete.
        RanksError: the others cannot be reached.
    """
    if _from_environment("WORLD_SIZE", 1) == 1 or dist.is_initialized():
        yield Job()
        return
    missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} asks for so many processes, but "
            f"{', '.join(missing)} is not set: start them by torchrun, or unset WORLD_SIZE"
        )
    # Loaded later, the default arguments of its functions would keep the group alive, and its
    # connections open.
    import_module("torch.distributed.nn.functional")
    has_gpu = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        store, rank, size = next(rendezvous("env://", timeout=_JOINING))
        # torchrun keeps the store, with the addresses in it, when it starts a job again.
        store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        store.set(f"bptt/started/{rank}", "")
        store.wait([f"bptt/started/{r}" for r in range(size)], _JOINING)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if has_gpu else "gloo",
            **{"store": store, "rank": rank, "world_size": size, "timeout": _CONNECTING},
        )
        dist.distributed_c10d._set_pg_timeout(_STALLED)
    except (RuntimeError, ValueError) as e:
        raise RanksError(f"the other processes cannot be reached: {_in_words(e)}") from None
    job = Job()
    try:
        yield job
        job.exchange(None)  # all have had all messages
    except BaseException as e:
        job.failed(e)
        raise
    job.left()


def threads_here() -> int | None:
    """Return how many threads this process should have; None: as many as torch has set.

    Several processes share a machine's cores, unless OMP_NUM_THREADS is set, as torchrun does.
    """
    here = _from_environment("LOCAL_WORLD_SIZE", 1)
    if here == 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, torch.get_num_threads() // here)


def device_here(name: str) -> str:
    """Return the device of this process: of several GPUs, its own.

    Raises:
        ConfigError: all processes are to use the same GPU.
    """
    if _from_environment("LOCAL_WORLD_SIZE", 1) == 1 or not name.startswith("cuda"):
        return name
    if name != "cuda":
        raise ConfigError(
            f"{spelled('device', name)} is one GPU, but there are several processes on this "
            f"machine: use {spelled('device', 'cuda')}, which gives each its own"
        )
    return f"cuda:{_from_environment('LOCAL_RANK', 0)}"


def _from_environment(name: str, default: int) -> int:
    found = os.environ.get(name, "")
    if not found:
        return default
    if not found.isdecimal():
        raise ConfigError(f"the environment has {name}={found}: expected a number")
    return int(found)
