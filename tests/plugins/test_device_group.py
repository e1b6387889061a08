"""How ranks meet on GPUs: the binding of NCCL, memory that peers see, and how all ranks of an engine agree on both."""

import ctypes
import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from precast.plugins.collectives.device import nccl, peer_memory
from precast.plugins.collectives.device.group import GroupError, GroupSlot
from precast.plugins.collectives.device.mailbox import PROGRAMS, mailbox_bytes
from precast.plugins.collectives.device.messages import TEXT_BYTES, join_texts, split_texts
from precast.plugins.collectives.device.nccl import Communicator, load_nccl, new_unique_id
from precast.plugins.collectives.device.nccl_group import Exchange, NcclGroup
from precast.plugins.collectives.device.open_group import open_group
from precast.plugins.device.driver import DeviceError
from tests.plugins.fake_nccl import FakeNccl
from tests.plugins.fake_peers import PeerDriver, on_every_rank

COMMUNICATOR = (1 << 40) + 1
UNIQUE_ID = bytes(range(128))


class TestNccl:
    def test_ids_and_communicators(self) -> None:
        library = FakeNccl()
        assert new_unique_id(library) == b"id 1".ljust(127, b"\0") + b"!"
        Communicator(library, UNIQUE_ID, 4, 3)
        assert library.calls == [("ncclGetUniqueId",), ("ncclCommInitRank", 4, UNIQUE_ID, 3)]

    def test_collectives_pass_what_the_header_says(self) -> None:
        """Addresses and counts beyond 32 bits too. 6 and 9 are float16 and bfloat16, 0 is a sum."""
        library = FakeNccl()
        communicator = Communicator(library, UNIQUE_ID, 2, 0)
        x, y, count, stream = 1 << 45, 3 << 44, 1 << 33, 7 << 41
        communicator.all_reduce(x, y, count, "bfloat16", stream)
        communicator.all_gather(x, y, count, "float16", stream)
        communicator.send(x, count, "float16", 5, stream)
        communicator.receive(y, count, "bfloat16", 1, stream)
        assert library.calls[1:] == [
            ("ncclAllReduce", x, y, count, 9, 0, COMMUNICATOR, stream),
            ("ncclAllGather", x, y, count, 6, COMMUNICATOR, stream),
            ("ncclSend", x, count, 6, 5, COMMUNICATOR, stream),
            ("ncclRecv", y, count, 9, 1, COMMUNICATOR, stream),
        ]

    def test_the_default_stream_is_null(self) -> None:
        library = FakeNccl()
        Communicator(library, UNIQUE_ID, 2, 0).all_reduce(16, 32, 8, "float16", 0)
        assert library.calls[-1] == ("ncclAllReduce", 16, 32, 8, 6, 0, COMMUNICATOR, None)

    def test_the_end_comes_once(self) -> None:
        library = FakeNccl()
        closed, aborted = (Communicator(library, UNIQUE_ID, 2, 0) for _ in range(2))
        for _ in range(2):
            closed.close()
            aborted.abort()
        closed.abort()
        assert library.calls[2:] == [("ncclCommDestroy", COMMUNICATOR), ("ncclCommAbort", COMMUNICATOR + 1)]

    @pytest.mark.parametrize(
        ("call", "text"),
        [
            ("ncclGetUniqueId", "ncclGetUniqueId: unhandled cuda error"),
            ("ncclCommInitRank", "ncclCommInitRank on rank 1 of 4: unhandled cuda error"),
            ("ncclAllReduce", "ncclAllReduce on rank 1 of 4: unhandled cuda error"),
            ("ncclCommDestroy", "ncclCommDestroy on rank 1 of 4: unhandled cuda error"),
        ],
    )
    def test_an_error_names_the_call_the_rank_and_nccls_words(self, call: str, text: str) -> None:
        library = FakeNccl(refuse=call)
        with pytest.raises(GroupError, match=rf"^{text} \(NCCL_DEBUG=WARN says more\)$"):
            self.use(library)

    def use(self, library: FakeNccl) -> None:
        communicator = Communicator(library, new_unique_id(library), 4, 1)
        communicator.all_reduce(16, 32, 8, "float16", 0)
        communicator.close()

    def test_an_error_that_comes_later(self) -> None:
        communicator = Communicator(FakeNccl(async_error=6), UNIQUE_ID, 4, 1)
        with pytest.raises(GroupError, match=r"^a collective of NCCL on rank 1 of 4: remote process exited or "):
            communicator.check()
        for still_fine in (0, 7):  # 7: in progress
            Communicator(FakeNccl(async_error=still_fine), UNIQUE_ID, 4, 1).check()

    def test_a_library_that_is_too_old(self) -> None:
        with pytest.raises(GroupError, match=r"^NCCL has no ncclSend: 2\.10 or later is needed; pip install nvidia-"):
            Communicator(FakeNccl(lacks="ncclSend"), UNIQUE_ID, 2, 0)


class TestLoading:
    @pytest.fixture
    def opened(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        names: list[str] = []

        def refuse(name: str) -> None:
            names.append(name)
            raise OSError(f"{name}: cannot open shared object file")

        monkeypatch.setattr(ctypes, "CDLL", refuse)
        return names

    def test_the_package_comes_first(self, opened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        library = tmp_path / "lib" / "libnccl.so.2"
        library.parent.mkdir()
        library.touch()
        found = SimpleNamespace(submodule_search_locations=[str(tmp_path / "none"), str(tmp_path)])
        monkeypatch.setattr(importlib.util, "find_spec", {"nvidia.nccl": found}.get)
        with pytest.raises(GroupError, match=r"which cannot be loaded: .*; install that package again$"):
            load_nccl()
        assert opened == [str(library)]

    @pytest.mark.parametrize("has_namespace", [False, True])
    def test_without_it_the_systems_is_tried(
        self, opened: list[str], monkeypatch: pytest.MonkeyPatch, has_namespace: bool
    ) -> None:
        def find_spec(name: str) -> None:
            if not has_namespace:
                raise ModuleNotFoundError("No module named 'nvidia'")

        monkeypatch.setattr(importlib.util, "find_spec", find_spec)
        with pytest.raises(GroupError, match=r"^ranks on GPUs meet through NCCL, .*; pip install nvidia-nccl-cu13$"):
            load_nccl()
        assert opened == ["libnccl.so.2"]


def test_texts_of_a_fixed_size() -> None:
    data = join_texts("host", "", "x" * 1000, "ä" * TEXT_BYTES)
    assert len(data) == 4 * TEXT_BYTES
    assert split_texts(data) == ("host", "", "x" * TEXT_BYTES, "ä" * (TEXT_BYTES // 2))
    assert split_texts(join_texts("é" + "ä" * TEXT_BYTES + "\0")) == ("é" + "ä" * (TEXT_BYTES // 2 - 1),)


def test_a_slot_gives_what_was_installed() -> None:
    slot = GroupSlot()
    with pytest.raises(GroupError, match="this process has joined none: open a group and install it first"):
        slot()
    group: Any = object()
    slot.install(group)
    assert slot() is group
    slot.install(None)
    with pytest.raises(GroupError):
        slot()


@dataclass
class World:
    """The ranks of an engine, each with a driver and a library of its own."""

    tensor_parallel_size: int
    pipeline_parallel_size: int = 1

    def __post_init__(self) -> None:
        self.num_ranks = self.tensor_parallel_size * self.pipeline_parallel_size
        self.drivers = [PeerDriver(rank=rank) for rank in range(self.num_ranks)]
        self.libraries: list[Any] = [FakeNccl() for _ in range(self.num_ranks)]
        self.num_exchanges = 0

    def open(self, timeout_s: float = 60.0) -> list[Any]:
        """Each rank's group, or its error."""

        def one(rank: int, exchange: Exchange) -> NcclGroup:
            sizes = (self.tensor_parallel_size, self.pipeline_parallel_size)
            driver, library = self.drivers[rank], self.libraries[rank]
            return open_group(*sizes, rank, exchange, driver=driver, library=library, timeout_s=timeout_s)

        groups, meeting = on_every_rank(self.num_ranks, one)
        self.num_exchanges = meeting.count
        return groups


class TestOpening:
    def test_a_stage_has_a_communicator_and_the_engine_another(self) -> None:
        world = World(2, 2)
        groups = world.open()
        assert [(group.num_ranks, group.tensor_rank) for group in groups] == [(2, 0), (2, 1)] * 2
        engine_id, stage_ids = self.ids("id 2"), [self.ids("id 1")] * 2
        for rank, library in enumerate(world.libraries):
            assert [call for call in library.calls if call[0] == "ncclCommInitRank"] == [
                ("ncclCommInitRank", 4, engine_id, rank),
                ("ncclCommInitRank", 2, stage_ids[rank // 2], rank % 2),
            ]
        assert [library.names().count("ncclGetUniqueId") for library in world.libraries] == [2, 0, 1, 0]
        assert world.num_exchanges == 3

    def ids(self, text: str) -> bytes:
        return text.encode().ljust(127, b"\0") + b"!"

    def test_neighbours_have_the_same_tensor_rank(self) -> None:
        world = World(2, 3)
        group = world.open()[3]  # tensor rank 1 of the stage in the middle
        group.send(16, 8, "float16", 5)
        group.receive(32, 8, "float16", 5)
        group.all_reduce(16, 32, 8, "float16", 5)
        group.all_gather(16, 32, 8, "float16", 5)
        engine, stage = COMMUNICATOR, COMMUNICATOR + 1
        assert world.libraries[3].calls[-4:] == [
            ("ncclSend", 16, 8, 6, 5, engine, 5),
            ("ncclRecv", 32, 8, 6, 1, engine, 5),
            ("ncclAllReduce", 16, 32, 8, 6, 0, stage, 5),
            ("ncclAllGather", 16, 32, 8, 6, stage, 5),
        ]

    def test_stages_of_one_rank_have_no_sums(self) -> None:
        world = World(1, 2)
        first, second = world.open()
        assert world.num_exchanges == 1
        assert [driver.calls for driver in world.drivers] == [[], []]
        assert first.mailboxes is None
        second.receive(16, 8, "bfloat16", 0)
        with pytest.raises(GroupError, match=r"^this rank is alone in its stage, and a plan for several ranks wants"):
            first.all_reduce(16, 32, 8, "bfloat16", 0)

    def test_one_stage_has_no_neighbours(self) -> None:
        group, _ = World(2).open()
        with pytest.raises(GroupError, match=r"^this rank is alone in its pipeline, "):
            group.send(16, 8, "bfloat16", 0)

    def test_numbers_are_written_in_stream_order(self) -> None:
        world = World(2)
        world.open()[1].write_int32(4096, 17, 3)
        assert world.drivers[1].calls[-1] == ("cuMemsetD32Async", 4096, 17, 1, 3)

    def test_a_rank_that_cannot_take_part_is_named_by_all_and_none_waits(self) -> None:
        world = World(2, 2)
        world.libraries[2] = FakeNccl(refuse="ncclGetUniqueId")
        texts = {str(error) for error in world.open()}
        assert texts == {"rank 2: ncclGetUniqueId: unhandled cuda error (NCCL_DEBUG=WARN says more)"}
        assert not any("ncclCommInitRank" in library.names() for library in world.libraries)
        assert world.num_exchanges == 1

    def test_a_library_that_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing() -> None:
            raise GroupError("no NCCL; pip install nvidia-nccl-cu13")

        monkeypatch.setattr(nccl, "load_nccl", missing)
        world = World(2)
        world.libraries[1] = None
        assert {str(error) for error in world.open()} == {"rank 1: no NCCL; pip install nvidia-nccl-cu13"}

    def test_later_errors_are_checked_on_both(self) -> None:
        world = World(2, 2)
        group = world.open()[0]
        group.check()
        assert world.libraries[0].calls[-2:] == [
            ("ncclCommGetAsyncError", COMMUNICATOR + 1),
            ("ncclCommGetAsyncError", COMMUNICATOR),
        ]
        world.libraries[0].async_error = 6
        with pytest.raises(GroupError, match=r"on rank 0 of 2: remote process exited"):
            group.check()

    def test_abort_does_not_meet(self) -> None:
        world = World(2, 2)
        world.open()[1].abort()
        assert world.libraries[1].names()[-2:] == ["ncclCommAbort"] * 2
        assert "cuMemFree" not in world.drivers[1].names()


class TestPeerMemory:
    def test_each_rank_maps_the_others_mailboxes(self) -> None:
        world = World(3)
        groups = world.open(timeout_s=1.5)
        own = [1_000_000, 2_000_000, 3_000_000]
        for rank, (group, driver) in enumerate(zip(groups, world.drivers, strict=True)):
            boxes = group.mailboxes
            table = np.frombuffer(driver.memory[boxes.table], np.int64)
            assert table.tolist() == [address + 1_000_000_000 * (peer != rank) for peer, address in enumerate(own)]
            opened = [call for call in driver.calls if call[0] == "cuIpcOpenMemHandle"]
            assert opened == [("cuIpcOpenMemHandle", own[peer], 1) for peer in range(3) if peer != rank]
            assert boxes.timeout_ms == 1500
            regions = sorted([boxes.calls, boxes.missing, boxes.table])
            assert all(address % 16 == 0 for address in regions)
            assert min(np.diff(regions)) >= 4 * PROGRAMS

    def test_a_mailbox_is_empty_before_others_know_it(self) -> None:
        world = World(2)
        world.open()
        names = world.drivers[0].names()
        assert names[:6] == ["cuMemAlloc"] * 2 + ["cuMemsetD8"] * 2 + ["cuCtxSynchronize", "cuCtxGetDevice"]
        assert names.index("cuIpcGetMemHandle") > names.index("cuCtxSynchronize")
        assert names[names.index("cuMemcpyHtoD") + 1] == "cuCtxSynchronize"  # the table of addresses is there, too
        mailbox, own = (call[1] for call in world.drivers[0].calls[:2])
        assert mailbox_bytes(2) <= mailbox == 2 << 20  # a block of its own, as peers open whole ones
        assert world.drivers[0].calls[2:4] == [
            ("cuMemsetD8", 1_000_000, 0, mailbox_bytes(2)),
            ("cuMemsetD8", 1_000_000 + -(-mailbox // 4096) * 4096, 0, own),
        ]

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"bus_id": "0000:00:00.0"}, "rank 0: tensor rank 1 has the same GPU, 0000:00:00.0"),
            (
                {"unreachable": ("0000:00:00.0",)},
                "rank 1: GPU 0000:01:00.0 has no peer access to GPU 0000:00:00.0 of tensor rank 0",
            ),
            ({"refuse": "cuIpcOpenMemHandle"}, "rank 1: cuIpcOpenMemHandle: no kernel image"),
            ({"refuse": "cuMemAlloc"}, "rank 1: cuMemAlloc: no kernel image"),
            ({"refuse": "cuIpcGetMemHandle"}, "rank 1: cuIpcGetMemHandle: no kernel image"),
        ],
    )
    def test_where_one_cannot_none_has_it(
        self, change: dict[str, Any], text: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """They meet through NCCL: no error, but a line in the log. Another stage is not touched by it."""
        world = World(2, 2)
        world.drivers[1] = PeerDriver(rank=1, **change)
        caplog.set_level(logging.INFO)
        groups = world.open()
        assert [group.mailboxes is None for group in groups] == [True, True, False, False]
        lines = [record.message for record in caplog.records]
        assert len(lines) == 2
        assert all(
            line.startswith(f"ranks do not see each other's memory and sum through NCCL: {text}") for line in lines
        )
        groups[0].all_reduce(16, 32, 8, "float16", 0)
        for driver in world.drivers[:2]:
            opened = [call for call in driver.calls if call[0] == "cuIpcOpenMemHandle" and driver.refuse != call[0]]
            assert driver.names().count("cuIpcCloseMemHandle") == len(opened)

    def test_other_hosts_and_many_ranks(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        assert {group.mailboxes for group in World(9).open()} == {None}
        assert "rank 0: 9 ranks are more than 8" in caplog.text
        boots = iter(("one boot", "another"))
        monkeypatch.setattr(peer_memory, "_BOOT_ID", SimpleNamespace(read_text=lambda: next(boots)))
        assert {group.mailboxes for group in World(2).open()} == {None}
        assert "rank 0: tensor rank 1 runs on another host" in caplog.text

    def test_a_rank_that_did_not_come_is_named(self) -> None:
        world = World(3)
        group = world.open(timeout_s=2.5)[1]
        group.check()
        missing = np.zeros(PROGRAMS, np.int32)
        missing[5:] = 3
        world.drivers[1].memory[group.mailboxes.missing] = missing.tobytes()
        text = r"^AllReduce on tensor rank 1 of 3: tensor rank 2 did not come within 2\.5 s$"
        with pytest.raises(GroupError, match=text):
            group.check()

    def test_memory_is_freed_when_no_peer_has_it_open(self) -> None:
        world = World(2)
        groups = world.open()
        events: list[str] = []

        def close(rank: int, exchange: Exchange) -> None:
            def meet(mine: bytes) -> list[bytes]:
                events.extend(
                    name for name in world.drivers[rank].names() if name in ("cuIpcCloseMemHandle", "cuMemFree")
                )
                return exchange(mine)

            groups[rank].close(meet)

        results, meeting = on_every_rank(2, close)
        assert results == [None, None]
        assert meeting.count == 1
        assert events == ["cuIpcCloseMemHandle"] * 2  # nothing is freed before all have met
        for driver, library in zip(world.drivers, world.libraries, strict=True):
            assert driver.names()[-2:] == ["cuMemFree"] * 2
            freed = {call[1] for call in driver.calls if call[0] == "cuMemFree"}
            assert freed == {call[1] for call in driver.calls if call[0] == "cuMemsetD8"}
            assert library.names()[-1] == "ncclCommDestroy"

    def test_half_of_the_memory_is_given_back(self) -> None:
        class Full(PeerDriver):
            def cuMemAlloc(self, size_bytes: int) -> tuple[Any, ...]:  # noqa: N802
                self.refuse = "cuMemAlloc" if "cuMemAlloc" in self.names() else ""
                return super().cuMemAlloc(size_bytes)

        driver = Full()
        with pytest.raises(DeviceError, match=r"^cuMemAlloc: "):
            peer_memory.PeerMemory(driver, 2, 0, 1)
        assert driver.calls[-1] == ("cuMemFree", 1_000_000)
