"""A process that runs prompts through an engine and keeps what its layers give: `precast verify --backend tensorrt`.

    python -m precast.runtime.device.layer_outputs ENGINE OUTPUT

Prompts are on standard input, JSON lists of token ids. OUTPUT is an .npz file: for prompt i "i/logits" float32 [T, V]
and "i/layers.0.mixer_sum" and so on, float32 [T, H]. The engine was built with layer_outputs, for one rank, and for as
many sequences and tokens of a step as the longest prompt has.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from precast.checkpoints.engine_dir import read_manifest
from precast.checkpoints.engine_errors import EngineError
from precast.checkpoints.engine_kv import kv_page_bytes
from precast.checkpoints.engine_manifest import EngineManifest
from precast.plugins.device.driver import DeviceError
from precast.runtime.device.open_engine import Limits, OpenedSession, open_session
from precast.runtime.device.step import TOKEN_SOURCE, Step
from precast.runtime.device.worker import SUPPORT, open_toolkit
from precast.runtime.errors import NativeError

Arrays = dict[str, NDArray[np.float32]]


def layer_outputs(engine: Path, prompts: Sequence[Sequence[int]]) -> Arrays:
    """What the layers give for each prompt, by itself.

    Raises:
        EngineError, NativeError, DeviceError: the engine cannot be opened or run here.
    """
    manifest = read_manifest(engine, SUPPORT)
    toolkit = open_toolkit(engine, manifest, rank=0)
    longest = max(map(len, prompts))
    num_blocks = len(manifest.ranks[0].kv_groups) * -(-longest // manifest.build.tokens_per_block)
    limits = Limits(
        kv_cache_bytes=num_blocks * kv_page_bytes(manifest.ranks[0].kv_caches),
        max_batch_size=longest,
        max_num_tokens=longest,
        max_seq_len=0,
        rank=0,
        exchange=None,
    )
    opened = open_session(engine, manifest, toolkit, limits)
    arrays: Arrays = {}
    try:
        for number, prompt in enumerate(prompts):
            found = _run(opened, manifest, prompt, number + 1)
            arrays.update({f"{number}/{name}": array for name, array in found.items()})
    finally:
        opened.session.close()
    return arrays


def _run(opened: OpenedSession, manifest: EngineManifest, prompt: Sequence[int], step_id: int) -> Arrays:
    opened.session.enqueue(_step(manifest, prompt, step_id))
    arrays = {"logits": opened.session.collect(step_id).logits.copy()}
    for name, address in opened.layer_outputs.items():
        features = opened.network.shape_of(name)[1]
        data = opened.device.download(address, 2 * len(prompt) * features)
        arrays[name] = _widen(data, manifest.build.dtype).reshape(len(prompt), features)
    return arrays


def _step(manifest: EngineManifest, prompt: Sequence[int], step_id: int) -> Step:
    """The whole prompt, all of whose rows have logits."""
    tokens = len(prompt)
    width = -(-tokens // manifest.build.tokens_per_block)
    groups = len(manifest.ranks[0].kv_groups)
    return Step(
        id=step_id,
        token_ids=np.array(prompt, np.int32),
        query_starts=np.array([0, tokens], np.int32),
        context_lengths=np.array([tokens], np.int32),
        # Pools may be shared between groups: each has blocks of its own.
        block_tables=tuple(np.arange(width, dtype=np.int32)[None] + np.int32(width * group) for group in range(groups)),
        logit_rows=np.arange(tokens, dtype=np.int32),
        needs_logits=np.ones(tokens, np.uint8),
        num_candidates=np.zeros(tokens, np.int32),
        token_sources=np.empty(0, TOKEN_SOURCE),
    )


def _widen(data: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """16-bit numbers, exactly."""
    if dtype == "float16":
        return data.view(np.float16).astype(np.float32)
    return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status; what went wrong is the last line on standard error."""
    engine, output = map(Path, arguments)
    try:
        arrays = layer_outputs(engine, json.load(sys.stdin))
    except (EngineError, NativeError, DeviceError) as error:
        print(f"{error}", file=sys.stderr)
        return 1
    with output.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
