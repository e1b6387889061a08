"""The process of a rank that runs on a GPU. precast starts it (runtime/native/src/ranks/device), and nobody else."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from precast.checkpoints.engine_dir import read_manifest
from precast.checkpoints.engine_manifest import EngineManifest, TensorRtRequirements
from precast.checkpoints.engine_manifest_reader import RuntimeSupport
from precast.plugins import TENSORRT_LAYOUTS, TENSORRT_OPS
from precast.runtime.library import check, load_library
from precast.runtime.structs import SessionConfigStruct
from precast.runtime.tensorrt.network import say
from precast.runtime.tensorrt.open_engine import Limits, OpenedSession, open_session
from precast.runtime.tensorrt.runtime_cache import write_cache
from precast.runtime.tensorrt.session_table import SessionTable
from precast.runtime.tensorrt.toolkit import check_device, open_toolkit
from precast.runtime.tensorrt.warm import run_shapes

WARM_VARIABLE = "PRECAST_TENSORRT_WARM"
"""Set to 1 by `precast warm`: ranks run all their shapes when they load, and keep what was compiled in the engine."""
SUPPORT = RuntimeSupport(
    supports=lambda name: name in TENSORRT_OPS or name in TENSORRT_LAYOUTS,
    backends=("tensorrt",),
    max_world_size=1 << 15,
)
"""What this process can run: the ops that have plugins."""


def open_rank(config: SessionConfigStruct, exchange: Callable[[bytes], list[bytes]] | None) -> OpenedSession:
    """The session that the library asks for; see session_table.py."""
    engine = Path(config.engine_path.decode("utf-8", "surrogateescape"))
    manifest = read_manifest(engine, SUPPORT)
    assert isinstance(manifest.backend_requirements, TensorRtRequirements)  # what the backend's engines have
    toolkit = open_toolkit(str(engine), manifest.backend_requirements)
    check_device(str(engine), manifest, toolkit.driver, config.rank)
    limits = Limits(
        kv_cache_bytes=config.kv_cache_bytes,
        max_batch_size=config.max_batch_size,
        max_num_tokens=config.max_num_tokens,
        max_seq_len=config.max_seq_len,
        rank=config.rank,
        exchange=exchange,
    )
    opened = open_session(engine, manifest, toolkit, limits)
    if os.environ.get(WARM_VARIABLE) == "1":
        try:
            _warm(opened, config, manifest)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # what they hold of TensorRT's must go before the device does
            opened.session.close()
            raise
    return opened


def _warm(opened: OpenedSession, config: SessionConfigStruct, manifest: EngineManifest) -> None:
    """Run all shapes before the engine has any, and keep what was compiled."""
    longest = manifest.model.max_seq_len
    num_steps = run_shapes(
        opened.session,
        max_batch_size=config.max_batch_size,
        max_num_tokens=config.max_num_tokens,
        max_context=min(longest, config.max_seq_len or longest),
        num_kv_groups=config.num_kv_groups,
    )
    compiled = opened.network.compiled()
    if compiled is None:
        say("nothing to keep: only TensorRT-RTX compiles where it runs")
        return
    write_cache(opened.cache_place, compiled)
    say(f"{opened.cache_place.path}: {len(compiled)} bytes, compiled for {num_steps} shapes")


def main(arguments: Sequence[str]) -> int:
    """Run the rank that the arguments name, until its engine ends. Returns the exit status."""
    # What Python raises for it would be lost in a call from C, whose result would be wrong: it ends the process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    logging.basicConfig(format="%(message)s")  # on the standard error, which the engine reads
    logging.getLogger("precast").setLevel(logging.INFO)
    library = load_library()
    table = SessionTable(library, open_rank)
    texts = (ctypes.c_char_p * len(arguments))(*(argument.encode("utf-8", "surrogateescape") for argument in arguments))
    status = ctypes.c_int32()
    check(library, library.precast_worker_run(texts, len(texts), ctypes.byref(table.struct), ctypes.byref(status)))
    return status.value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
