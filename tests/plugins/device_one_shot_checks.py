"""The one-shot sum in Triton's interpreter: ranks are processes, and their mailboxes memory that all of them map.

Not collected by itself: test_one_shot.py runs this file in a process whose TRITON_INTERPRET is 1.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from triton.runtime import interpreter

from precast.plugins.all_reduce.reference import all_reduce
from precast.plugins.all_reduce.schema import AllReduceAttributes
from precast.plugins.collectives.device import mailbox, one_shot
from precast.plugins.collectives.device.mailbox import flag_bytes, mailbox_bytes
from precast.plugins.collectives.device.one_shot import one_shot_launch, one_shot_specs
from tests.plugins import device_interpreter

# From Python 3.12 on it warns of threads, of which PyTorch has some: they do nothing here.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

Array = NDArray[Any]
Mailboxes = Callable[[int], list[Path]]
DTYPES: dict[str, Any] = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
PROGRAMS, BLOCK, BUFFER_BYTES = 3, 16, 512
TIMEOUT_MS = 60_000


@dataclass(frozen=True)
class Call:
    """One sum: of so many elements, this rank's delay before it, and the x of all ranks."""

    x: Sequence[Array]
    delays_s: Sequence[float]


def make_small() -> None:
    """Few programs, short steps and buffers: small sums fill several of each."""
    for module in (one_shot, mailbox):
        for name, value in (("PROGRAMS", PROGRAMS), ("BLOCK", BLOCK), ("BUFFER_BYTES", BUFFER_BYTES)):
            setattr(module, name, value)


class Rank:
    """What the kernel of a rank is given. Each rank maps the mailboxes at addresses of its own."""

    def __init__(self, files: Sequence[Path], rank: int, dtype: str) -> None:
        self.rank, self.num_ranks, self.dtype = rank, len(files), dtype
        self._mailboxes = [np.memmap(file, np.uint8, mode="r+") for file in files]
        self.table = np.array([box.ctypes.data for box in self._mailboxes], np.int64)
        self.calls, self.missing = np.zeros(PROGRAMS, np.int32), np.zeros(PROGRAMS, np.int32)

    def run(self, x: Array, timeout_ms: int = TIMEOUT_MS) -> Array:
        """One sum. Every access to memory is checked: of peers, only flags are written and buffers read."""
        y = np.full(x.shape, np.nan, x.dtype)
        memory = device_interpreter.Memory()
        memory.add("x", x, readable=True)
        memory.add("y", y, writable=True)
        for name, array in (("mailboxes", self.table), ("calls", self.calls), ("missing", self.missing)):
            memory.add(name, array, readable=True, writable=name != "mailboxes")
        start = flag_bytes(self.num_ranks)
        for peer, box in enumerate(self._mailboxes):
            is_own = peer == self.rank
            memory.add(f"flags {peer}", box[:start].view(np.int32), readable=is_own, writable=self._own_flags())
            buffers = box[start : mailbox_bytes(self.num_ranks)].view(DTYPES[self.dtype])
            memory.add(f"buffers {peer}", buffers, readable=True, writable=is_own)
        arrays = {"x": x, "y": y, "mailboxes": self.table, "calls": self.calls, "missing": self.missing}
        launch = one_shot_launch(x.size, self.rank, timeout_ms)
        device_interpreter.run((launch,), one_shot_specs(self.num_ranks, self.dtype), arrays, memory)
        return y

    def _own_flags(self) -> NDArray[np.bool_]:
        """Those that this rank writes, in every mailbox."""
        size = flag_bytes(self.num_ranks) // 4
        index = np.arange(size)
        is_own: NDArray[np.bool_] = (index % self.num_ranks == self.rank) & (index < 2 * PROGRAMS * self.num_ranks)
        return is_own


def run_rank(files: Sequence[Path], rank: int, dtype: str, calls: Sequence[Call], answers: Any) -> None:
    """The process of a rank: all sums, one after the other; sends their results and the state after them."""
    make_small()
    me = Rank(files, rank, dtype)
    results = []
    for call in calls:
        time.sleep(call.delays_s[rank])
        results.append(me.run(call.x[rank]).view(np.uint16))
    answers.send((results, me.calls, me.missing))


@pytest.fixture
def mailboxes(tmp_path: Path) -> Mailboxes:
    """`mailboxes(num_ranks)`: a file for each rank, which processes map."""

    def make(num_ranks: int) -> list[Path]:
        files = [tmp_path / f"mailbox{rank}" for rank in range(num_ranks)]
        for file in files:
            file.write_bytes(bytes(mailbox_bytes(num_ranks)))
        return files

    make_small()
    return make


def run_ranks(files: Sequence[Path], dtype: str, calls: Sequence[Call]) -> list[Any]:
    """What each rank's process sends. Forked: Triton is imported already."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in files]
    processes = [
        context.Process(target=run_rank, args=(files, rank, dtype, calls, sender), daemon=True)
        for rank, (_, sender) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    try:
        received = []
        for (receiver, _), process in zip(pipes, processes, strict=True):
            wait([receiver, process.sentinel], TIMEOUT_MS / 1000)
            assert receiver.poll(), "a rank has failed"
            received.append(receiver.recv())
        return received
    finally:
        for process in processes:
            process.kill()
            process.join()


def make_calls(dtype: str, num_ranks: int, sizes: Sequence[int], seed: int = 0) -> list[Call]:
    """Values of very different size, some of which cancel out: another order of additions gives other bits."""
    generator = np.random.default_rng(seed)
    calls = []
    for size in sizes:
        scale = 2.0 ** generator.integers(-12, 13, (num_ranks, size))
        x = (generator.standard_normal((num_ranks, size)) * scale).astype(DTYPES[dtype])
        x[-1, ::2] = -x[0, ::2]
        calls.append(Call(list(x), list(generator.choice([0, 0, 0.01, 0.03], num_ranks))))
    return calls


def expected(x: Sequence[Array]) -> Array:
    """fp32 sums in the order of ranks, rounded once."""
    total = all_reduce([each.astype(np.float32)[None] for each in x], AllReduceAttributes(len(x)))[0]
    rounded: Array = total.astype(x[0].dtype)
    return rounded


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_every_rank_gets_the_references_bits(mailboxes: Mailboxes, num_ranks: int, dtype: str) -> None:
    """Sizes below a step and above all programs' steps, in turns: a program's part changes from call to call."""
    sizes = [8, 256, 16, 200, 8, 104, 256, 48]
    calls = make_calls(dtype, num_ranks, sizes)
    for results, num_calls, missing in run_ranks(mailboxes(num_ranks), dtype, calls):
        for result, call in zip(results, calls, strict=True):
            np.testing.assert_array_equal(result, expected(call.x).view(np.uint16))
        assert num_calls.tolist() == [len(sizes)] * PROGRAMS
        assert missing.tolist() == [0] * PROGRAMS


def test_a_rank_reads_while_others_are_in_the_next_call(mailboxes: Mailboxes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 waits before it looks for flags and before it reads; the others write what comes next in the meantime.

    With one program: the interpreter runs them one after the other, and the next call begins when the last one reads.
    """

    class SlowReader(Rank):
        def __init__(self, files: Sequence[Path], rank: int, dtype: str) -> None:
            super().__init__(files, rank, dtype)
            poll = interpreter.InterpreterBuilder.create_atomic_poll

            def poll_and_wait(*arguments: Any) -> Any:
                time.sleep(0.4 if rank == 0 else 0)
                arrived = poll(*arguments)
                time.sleep(0.4 if rank == 0 else 0)
                return arrived

            interpreter.InterpreterBuilder.create_atomic_poll = poll_and_wait

    monkeypatch.setitem(globals(), "Rank", SlowReader)  # forked processes see it, and this
    monkeypatch.setitem(globals(), "PROGRAMS", 1)
    make_small()
    calls = [Call(call.x, [0.0] * 3) for call in make_calls("float16", 3, [256] * 4)]
    for results, _, missing in run_ranks(mailboxes(3), "float16", calls):
        for result, call in zip(results, calls, strict=True):
            np.testing.assert_array_equal(result, expected(call.x).view(np.uint16))
        assert missing.tolist() == [0]


def test_the_order_of_ranks_shows() -> None:
    """In what is compared above."""
    (call,) = make_calls("float16", 3, [256])
    assert (expected(call.x) != expected([call.x[0], call.x[2], call.x[1]])).any()


def test_the_number_of_a_call_may_wrap_around(mailboxes: Mailboxes, monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Rank):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.calls[:] = 2**31 - 3

    monkeypatch.setitem(globals(), "Rank", Late)  # forked processes see it
    calls = make_calls("bfloat16", 2, [40] * 6)
    for results, num_calls, missing in run_ranks(mailboxes(2), "bfloat16", calls):
        for result, call in zip(results, calls, strict=True):
            np.testing.assert_array_equal(result, expected(call.x).view(np.uint16))
        assert num_calls.tolist() == [-(2**31) + 3] * PROGRAMS
        assert missing.tolist() == [0] * PROGRAMS


def test_a_rank_that_does_not_come_is_named_and_waited_for_once(mailboxes: Mailboxes) -> None:
    files = mailboxes(3)
    me = Rank(files, 1, "float16")
    x = np.ones(48, np.float16)
    start = time.monotonic()
    me.run(x, timeout_ms=50)
    assert me.missing.tolist() == [1] * PROGRAMS  # 1 + rank 0, the first of the two that are missing
    assert time.monotonic() - start > PROGRAMS * 0.05
    start = time.monotonic()
    me.run(x, timeout_ms=60_000)
    assert time.monotonic() - start < 30


def test_ranks_after_one_that_came_are_named(mailboxes: Mailboxes) -> None:
    files = mailboxes(3)
    ranks = [Rank(files, rank, "float16") for rank in range(3)]
    x = np.ones(48, np.float16)
    ranks[0].run(x, timeout_ms=1)
    ranks[1].run(x, timeout_ms=1)
    assert ranks[1].missing.tolist() == [3] * PROGRAMS
    y = ranks[2].run(x, timeout_ms=1)
    assert ranks[2].missing.tolist() == [0] * PROGRAMS  # the others' numbers lie there, though they gave up
    assert y.tolist() == [3.0] * 48
