"""What `precast inspect` prints about memory, and which sizes it takes."""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from precast.cli import host_memory
from precast.cli.engine_memory import KvBlockCounts, Share, fit_memory
from precast.cli.host_memory import available_memory_bytes
from precast.cli.memory_size import format_memory_size, parse_memory_size
from precast.cli.memory_tables import worth_showing
from tests.precast.cli.conftest import Result

Precast = Callable[..., Result]
RanksEngine = Callable[[str, int, int], Path]
Available = Callable[[int | None], None]


@pytest.fixture
def available(monkeypatch: pytest.MonkeyPatch) -> Available:
    """`available(10_000_000)`: the bytes that this host has, from then on."""

    def have(size_bytes: int | None) -> None:
        monkeypatch.setattr(host_memory, "available_memory_bytes", lambda: size_bytes)

    return have


def section(out: str, title: str) -> list[str]:
    """The lines below `title`, up to the next empty one, with single spaces."""
    lines = [" ".join(line.split()) for line in out.splitlines()]
    start = lines.index(title) + 1
    return lines[start : lines.index("", start)]


ONE_RANK = "what fits where: one device; 10% of its memory is left to activations and the backend"
RANKS = "what fits where: one device for each rank; 10% of its memory is left to activations and the backend"


def test_an_operator_reads_what_fits_where(precast: Precast, ranks_engine: RanksEngine, available: Available) -> None:
    available(10_000_000)
    result = precast("inspect", ranks_engine("gqa", 2, 1), "--memory", "1MB", "--memory", "10000000")
    assert (result.status, result.err) == (0, "")
    assert section(result.out, RANKS) == [
        "memory KV cache tokens sequences of 256",
        # 2,352,448 bytes of weights and a block of 4096 need a memory of 2,618,382, of which 261,838 are reserved
        "977 KiB does not fit: 1.54 MiB are missing on rank 0",
        # 9,000,000 - 2,352,448 = 6,647,552 bytes: 1622 blocks
        "9.54 MiB 25952 101 6.34 MiB for the KV cache on rank 0",
        # 16 blocks: 2,417,984 bytes, and 268,664 of reserve
        "The smallest device for one sequence of 256 tokens has 2.56 MiB.",
        # 9,000,000 - 4,704,896 = 4,295,104 bytes: 524 blocks of 8192; half of 10,000,000 holds 610
        (
            "This host, 9.54 MiB available, for all 2 ranks with weights of 4.49 MiB: 4.1 MiB for the KV cache, "
            "8384 tokens, 32 sequences of 256."
        ),
        "Without kv_cache_bytes, 4.77 MiB of it are taken, too much: give kv_cache_bytes=4295104 or less.",
    ]


def test_the_ranks_are_a_table_with_a_total(precast: Precast, ranks_engine: RanksEngine) -> None:
    lines = section(precast("inspect", ranks_engine("mqa", 1, 2)).out, "ranks")
    assert lines[0] == "rank stage tensor rank layers weights graph KV cache"
    without_graphs = [" ".join(words[:-10] + words[-8:]) for words in map(str.split, lines[1:])]
    assert without_graphs == [
        "0 0 0 0-1 2.39 MiB 4 KiB a block 256 B a token",
        "1 1 0 2 2.24 MiB 2 KiB a block 128 B a token",
        "total 4.63 MiB 6 KiB a block 384 B a token",
    ]


def test_one_rank_is_one_row_and_a_small_engine_one_size(
    precast: Precast, tiny_engine: Callable[..., Path], available: Available
) -> None:
    available(None)
    out = precast("inspect", tiny_engine("gqa")).out
    assert len(section(out, "ranks")) == 2
    memory, sentence, batch = section(out, ONE_RANK)[1:]
    assert memory.startswith("8 GiB ")
    assert sentence.startswith("The smallest device for one sequence of 256 tokens has ")
    assert batch == "What runs at once by default, 64 sequences (max_batch_size), fits larger devices too."


def test_windowed_layers_keep_no_whole_sequences(
    precast: Precast, tiny_engine: Callable[..., Path], tmp_path: Path, available: Available
) -> None:
    """An engine that is longer than a step and its window of 4."""
    available(None)
    engine = Path(shutil.copytree(tiny_engine("mistral"), tmp_path / "engine"))
    manifest = json.loads((engine / "engine.json").read_text())
    manifest["model"]["max_seq_len"] = 4096
    (engine / "engine.json").write_text(json.dumps(manifest))
    (fit,) = json.loads(precast("inspect", engine, "--memory", "100MB", "--json").out)["fits"]
    weights_bytes = manifest["files"]["rank0/weights.bin"]["size"]
    num_blocks = (90_000_000 - weights_bytes) // 8192  # 2 layers, K and V, 2 heads of 16, 16 tokens, fp32
    assert fit["kv_cache_tokens"] == 16 * num_blocks
    assert fit["sequences_of_max_seq_len"] == num_blocks // 130  # 3 + 2048 tokens touch 130 blocks, not 256
    out = precast("inspect", engine).out
    assert section(out, "ranks")[1].endswith(" 8 KiB a block 512 B a token in windows")
    assert (
        "Of a sequence, a layer with a window keeps the window and what is computed before blocks are given back, by "
        "default 2048 tokens (max_num_tokens)." in section(out, ONE_RANK)
    )


def test_a_host_that_holds_the_default_and_one_that_is_too_small(
    precast: Precast, tiny_engine: Callable[..., Path], available: Available
) -> None:
    available(1 << 30)
    # 64 sequences of 16 blocks of 8192 bytes
    assert section(precast("inspect", tiny_engine("gqa")).out, ONE_RANK)[-1] == (
        "Without kv_cache_bytes, 8 MiB of it are taken."
    )
    available(1_000_000)
    last = section(precast("inspect", tiny_engine("gqa")).out, ONE_RANK)[-1]
    assert last.startswith("This host, 977 KiB available, for the engine with weights of 2.49 MiB: does not fit: ")


def test_json_has_the_same_facts(precast: Precast, ranks_engine: RanksEngine, available: Available) -> None:
    available(10_000_000)

    def printed(*options: str) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(precast("inspect", ranks_engine("gqa", 2, 1), "--json", *options).out)
        return result

    document = printed("--memory", "10MB")
    assert [(rank["rank"], rank["layers"], rank["weights_bytes"]) for rank in document["ranks"]] == [
        (0, [0, 1], 2_352_448),
        (1, [0, 1], 2_352_448),
    ]
    fit = {
        "memory_bytes": 10_000_000,
        "reserved_bytes": 1_000_000,
        "weights_fit": True,
        "missing_bytes": 0,
        "tightest_ranks": [0],
        "free_for_kv_cache_bytes": 6_647_552,
        "kv_cache_tokens": 25_952,
        "sequences_of_max_seq_len": 101,
    }
    assert document["fits"] == [fit]
    assert document["smallest_memory_bytes"] == 2_686_648  # 2,352,448 + 16 x 4096, and 268,664 of reserve
    assert document["host"] == fit | {
        "tightest_ranks": [0, 1],
        "free_for_kv_cache_bytes": 4_295_104,
        "kv_cache_tokens": 8384,
        "sequences_of_max_seq_len": 32,
        "weights_bytes": 4_704_896,
        "default_kv_cache_bytes": 610 * 8192,
    }
    available(None)
    assert printed()["host"] is None
    assert [fit["memory_bytes"] >> 30 for fit in printed()["fits"]] == [8, 16, 24, 32, 48, 80, 141]


def test_sizes_that_say_nothing_new_are_left_out() -> None:
    blocks = KvBlockCounts(tokens_per_block=16, windows=(None,), max_seq_len=256, max_step_tokens=2048)

    def shown(weights_bytes: int) -> list[int]:
        share = Share(ranks=(0,), weights_bytes=weights_bytes, kv_block_bytes=1)  # a sequence takes 16 bytes
        fits = [fit_memory(size, [share], blocks) for size in (100, 1000, 2000, 3000, 4000)]
        return [fit.memory_bytes for fit in worth_showing(fits)]

    assert shown(1) == [100, 1000, 2000]  # 5, 56 and 112 sequences: by default 64 run at once
    assert shown(850) == [100, 1000, 2000, 3000]  # 100 is too small; 3, 59 and 115
    assert shown(2600) == [2000, 3000, 4000]  # 2000 is too small; 6 and 62
    assert shown(4000) == [4000]  # fits nowhere


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("25769803776", 24 << 30),
        ("24GiB", 24 << 30),
        ("24 gib", 24 << 30),
        ("24GB", 24_000_000_000),
        ("1.5GiB", 3 << 29),
        ("0.1KB", 100),
        ("2TB", 2_000_000_000_000),
        ("7B", 7),
    ],
)
def test_sizes_of_memory_are_read(text: str, size_bytes: int) -> None:
    assert parse_memory_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "0", "0.5B", "-1GiB", "24 parrots", "GiB", "1e9", "24GiBs", "1,5GiB", "٣", "9" * 30, "9999999TiB"]
)
def test_other_sizes_are_refused_with_what_is_taken(text: str) -> None:
    with pytest.raises(
        argparse.ArgumentTypeError, match="a number of bytes, or one with KB, MB, GB, TB, KiB"
    ) as caught:
        parse_memory_size(text)
    assert str(caught.value).startswith(repr(text))


def test_a_wrong_size_is_wrong_usage(precast: Precast) -> None:
    result = precast("inspect", "engine", "--memory", "24parrots")
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("precast: error: argument --memory: '24parrots' is not a size of memory: give ")


def test_sizes_are_written_as_devices_are_named() -> None:
    sizes = {8 << 30: "8 GiB", 1500 << 30: "1500 GiB", (1500 << 30) + 1: "1500 GiB", 3 << 29: "1.5 GiB", 999: "999 B"}
    assert {size: format_memory_size(size) for size in sizes} == sizes


@pytest.mark.parametrize(
    ("limit", "used", "left"),
    [
        ("max", "1000", 2048 * 1024),
        ("3000000", "1000000", 2_000_000),
        ("1000", "3000", 0),
        ("9000000000", "1", 2048 * 1024),
        (None, None, 2048 * 1024),
    ],
)
def test_available_memory_respects_the_control_group(
    tmp_path: Path, limit: str | None, used: str | None, left: int
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:        9999 kB\nMemFree:  1 kB\nMemAvailable:    2048 kB\n")
    for name, text in (("memory.max", limit), ("memory.current", used)):
        if text is not None:
            (tmp_path / name).write_text(f"{text}\n")
    assert available_memory_bytes(meminfo, control_group=tmp_path) == left


def test_available_memory_may_be_unknown(tmp_path: Path) -> None:
    assert available_memory_bytes(tmp_path / "meminfo", control_group=tmp_path) is None
