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
from precast.checkpoints.engine_manifest import EngineManifest, OnnxRuntimeCudaRequirements, TensorRtRequirements
from precast.checkpoints.engine_manifest_reader import RuntimeSupport
from precast.plugins import CUDA_OPS, DEVICE_LAYOUTS, TENSORRT_OPS
from precast.runtime.device.network import say
from precast.runtime.device.open_engine import Limits, OpenedSession, open_session
from precast.runtime.device.session import ABANDONED
from precast.runtime.device.session_table import SessionTable
from precast.runtime.device.toolkit import Toolkit
from precast.runtime.device.warm import run_shapes
from precast.runtime.library import check, load_library
from precast.runtime.structs import SessionConfigStruct

WARM_VARIABLE = "PRECAST_TENSORRT_WARM"
"""Set to 1 by `precast warm`: ranks run all their shapes when they load, and keep what was compiled in the engine."""
SUPPORT = RuntimeSupport(
    supports=lambda name: name in {*CUDA_OPS, *TENSORRT_OPS, *DEVICE_LAYOUTS},
    backends=("onnxruntime-cuda", "tensorrt"),
    max_world_size=1 << 15,
)
"""What this process can run: the ops that there are on devices."""


def open_rank(config: SessionConfigStruct, exchange: Callable[[bytes], list[bytes]] | None) -> OpenedSession:
    """The session that the library asks for; see session_table.py."""
    engine = Path(config.engine_path.decode("utf-8", "surrogateescape"))
    manifest = read_manifest(engine, SUPPORT)
    toolkit = open_toolkit(engine, manifest, config.rank)
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
            traceback.clear_frames(error.__traceback__)  # what they hold of the network must go before the device does
            opened.session.close()
            raise
    return opened


def open_toolkit(engine: Path, manifest: EngineManifest, rank: int) -> Toolkit:
    """What runs the engine, if it and the GPU of the rank are what the engine needs.

    Raises:
        EngineLoadError: they are not.
    """
    needs = manifest.backend_requirements
    if isinstance(needs, TensorRtRequirements):
        from precast.runtime.tensorrt import toolkit as tensorrt

        tensorrt_toolkit = tensorrt.open_toolkit(str(engine), needs)
        tensorrt.check_device(str(engine), manifest, tensorrt_toolkit.driver, rank)
        return tensorrt_toolkit
    from precast.runtime.onnxruntime import toolkit as cuda

    assert isinstance(needs, OnnxRuntimeCudaRequirements)  # SUPPORT has no other backends
    cuda_toolkit = cuda.open_toolkit(str(engine), needs)
    cuda.check_device(str(engine), manifest, cuda_toolkit.driver, rank)
    return cuda_toolkit


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
    say(opened.network.keep_compiled(num_steps))


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
    status = main(sys.argv[1:])
    if ABANDONED:  # Python would destroy them
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
