"""The one-shot sum on a GPU: ranks are streams of one device, whose kernels run beside each other.

So memory is not that of a peer; all else is as between GPUs.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from precast.plugins.all_reduce.reference import all_reduce
from precast.plugins.all_reduce.schema import AllReduceAttributes
from precast.plugins.collectives.device.mailbox import BUFFER_BYTES, PROGRAMS, mailbox_bytes
from precast.plugins.collectives.device.one_shot import one_shot_launch, one_shot_specs
from precast.plugins.device.driver import call_driver
from precast.plugins.device.launcher import Launcher

pytestmark = pytest.mark.gpu

Array = NDArray[Any]
DTYPES: dict[str, Any] = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
TIMEOUT_MS = 10_000
_NON_BLOCKING = 1
_THREAD_LOCAL_CAPTURE = 1


class Ranks:
    """N ranks on one device, with room for the largest message each."""

    def __init__(self, num_ranks: int, dtype: str) -> None:
        from precast.plugins.device.compile_triton import compile_kernels
        from tests.plugins.device_gpu import open_gpu

        self.driver, target = open_gpu()
        self.num_ranks, self.dtype = num_ranks, dtype
        self.launcher = Launcher(self.driver, compile_kernels(one_shot_specs(num_ranks, dtype), [target], ptx=False))
        self.streams = [self.call("cuStreamCreate", _NON_BLOCKING) for _ in range(num_ranks)]
        self.allocated: list[int] = []
        mailboxes = [self.allocate(mailbox_bytes(num_ranks)) for _ in range(num_ranks)]
        self.addresses = [
            {
                "x": self.allocate(BUFFER_BYTES),
                "y": self.allocate(BUFFER_BYTES),
                "mailboxes": self.allocate(8 * num_ranks),
                "calls": self.allocate(4 * PROGRAMS),
                "missing": self.allocate(4 * PROGRAMS),
            }
            for _ in range(num_ranks)
        ]
        for addresses in self.addresses:
            self.write(addresses["mailboxes"], np.array(mailboxes, np.int64))

    def call(self, name: str, *arguments: object) -> Any:
        return call_driver(self.driver, name, *arguments)

    def allocate(self, size_bytes: int) -> int:
        address = int(self.call("cuMemAlloc", size_bytes))
        self.allocated.append(address)
        self.call("cuMemsetD8", address, 0, size_bytes)
        return address

    def write(self, address: int, array: Array) -> None:
        self.call("cuMemcpyHtoD", address, array.ctypes.data, array.nbytes)

    def read(self, address: int, like: Array) -> Array:
        self.call("cuCtxSynchronize")
        array = np.empty_like(like)
        self.call("cuMemcpyDtoH", array.ctypes.data, address, array.nbytes)
        return array

    def launch(self, rank: int, num_elements: int, timeout_ms: int = TIMEOUT_MS) -> None:
        launch = one_shot_launch(num_elements, rank, timeout_ms)
        self.launcher.launch(launch, self.addresses[rank], int(self.streams[rank]))

    def capture(self, rank: int, num_elements: int) -> Any:
        """A graph of one sum, to be launched on the rank's stream."""
        self.call("cuStreamBeginCapture", self.streams[rank], self.driver.CUstreamCaptureMode(_THREAD_LOCAL_CAPTURE))
        self.launch(rank, num_elements)
        return self.call("cuGraphInstantiate", self.call("cuStreamEndCapture", self.streams[rank]), 0)

    def give(self, x: Sequence[Array]) -> None:
        self.call("cuCtxSynchronize")
        for addresses, array in zip(self.addresses, x, strict=True):
            self.write(addresses["x"], array)

    def check(self, x: Sequence[Array]) -> None:
        """Every rank has the reference's bits, and has waited for none in vain."""
        total = all_reduce([each.astype(np.float32)[None] for each in x], AllReduceAttributes(len(x)))[0]
        expected = total.astype(x[0].dtype).view(np.uint16)
        for addresses in self.addresses:
            np.testing.assert_array_equal(self.read(addresses["y"], x[0]).view(np.uint16), expected)
            assert not self.read(addresses["missing"], np.zeros(PROGRAMS, np.int32)).any()

    def close(self) -> None:
        self.call("cuCtxSynchronize")
        for address in self.allocated:
            self.call("cuMemFree", address)
        for stream in self.streams:
            self.call("cuStreamDestroy", stream)


@pytest.fixture
def make_ranks() -> Iterator[Callable[[int, str], Ranks]]:
    made: list[Ranks] = []

    def make(num_ranks: int, dtype: str) -> Ranks:
        made.append(Ranks(num_ranks, dtype))
        return made[-1]

    yield make
    for ranks in made:
        ranks.close()


def numbers(dtype: str, num_ranks: int, size: int, seed: int) -> list[Array]:
    generator = np.random.default_rng(seed)
    scale = 2.0 ** generator.integers(-12, 13, (num_ranks, size))
    x = (generator.standard_normal((num_ranks, size)) * scale).astype(DTYPES[dtype])
    x[-1, ::2] = -x[0, ::2]
    return list(x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_every_rank_gets_the_references_bits(
    make_ranks: Callable[[int, str], Ranks], num_ranks: int, dtype: str
) -> None:
    ranks = make_ranks(num_ranks, dtype)
    for seed, size in enumerate([8, 4096, BUFFER_BYTES // 2, 1024 * PROGRAMS + 8, 16, BUFFER_BYTES // 2]):
        x = numbers(dtype, num_ranks, size, seed)
        ranks.give(x)
        for rank in range(num_ranks):
            ranks.launch(rank, size)
        ranks.check(x)


def test_many_calls_without_a_pause(make_ranks: Callable[[int, str], Ranks]) -> None:
    """Some ranks are calls ahead of others, as far as meetings let them. The sum of equal numbers is known."""
    ranks, size = make_ranks(4, "float16"), 8192
    x = numbers("float16", 4, size, 0)
    ranks.give(x)
    for _ in range(200):
        for rank in (2, 0, 3, 1):
            ranks.launch(rank, size)
    ranks.check(x)
    for addresses in ranks.addresses:
        assert set(ranks.read(addresses["calls"], np.zeros(PROGRAMS, np.int32))) == {200}


def test_a_captured_graph_may_be_replayed(make_ranks: Callable[[int, str], Ranks]) -> None:
    ranks, size = make_ranks(2, "bfloat16"), 4096
    graphs = [ranks.capture(rank, size) for rank in range(2)]
    for seed in range(5):
        x = numbers("bfloat16", 2, size, seed)
        ranks.give(x)
        for rank, graph in enumerate(graphs):
            ranks.call("cuGraphLaunch", graph, ranks.streams[rank])
        ranks.check(x)


def test_a_rank_that_does_not_come_is_named(make_ranks: Callable[[int, str], Ranks]) -> None:
    ranks = make_ranks(3, "float16")
    ranks.launch(1, 64, timeout_ms=20)
    missing = ranks.read(ranks.addresses[1]["missing"], np.zeros(PROGRAMS, np.int32))
    assert missing.tolist() == [1] * PROGRAMS
