"""The shortest way to run steps of a plan: one buffer for each tensor, one stream, everything waited for.

It is what the fakes are tested with, and no model of a session.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precast.checkpoints.weights_reader import read_weights_index
from precast.plugins.paged_attention.tensorrt.plugin import make_creator
from tests.runtime.tensorrt.fake_tensorrt.basics import Dims

Array = NDArray[Any]
NUM_BLOCKS = 8
TOKENS_PER_BLOCK = 16
_NUMPY_TYPES = {"FLOAT": np.float32, "HALF": np.float16, "BF16": np.uint16, "INT32": np.int32}


class CallError(Exception):
    """A call of the driver did not succeed."""


def ok(answer: tuple[Any, ...]) -> Any:
    """The result of a call that must succeed, or None if it has none."""
    status, *results = answer
    if int(status):
        raise CallError(f"{status!r}")
    return results[0] if len(results) == 1 else results or None


def make_current(driver: ModuleType, ordinal: int = 0) -> Any:
    """Make the context of a device that of this thread."""
    ok(driver.cuInit(0))
    context = ok(driver.cuDevicePrimaryCtxRetain(ok(driver.cuDeviceGet(ordinal))))
    ok(driver.cuCtxSetCurrent(context))
    return context


def register_attention(trt: ModuleType) -> None:
    """Once in a process: the second time nothing changes."""

    def refuse(fields: object) -> bytes:
        raise ValueError(f"nothing is compiled here: {fields}")

    trt.get_plugin_registry().register_creator(make_creator(trt, refuse, []), "precast")


class PlainSession:
    """One sequence, whose blocks are 0, 1, 2 and so on, in a context that is current."""

    def __init__(self, driver: ModuleType, trt: ModuleType, rank: Path) -> None:
        register_attention(trt)
        self.driver, self.trt = driver, trt
        engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine((rank / "model.plan").read_bytes())
        assert engine is not None
        self.engine = engine
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self.cache = config.create_runtime_cache()
        config.set_runtime_cache(self.cache)
        self.context = engine.create_execution_context(config)
        self.stream = ok(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
        self.names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.weights = self._load_weights(rank / "weights.bin")
        self.addresses: dict[str, int] = dict(self.weights)
        self._give_memory()

    def _load_weights(self, path: Path) -> dict[str, int]:
        if not path.exists():
            return {}
        data, addresses = np.fromfile(path, np.uint8), {}
        for tensor in read_weights_index(path).tensors:
            part = data[tensor.offset :][: tensor.spec.size_bytes]
            addresses[tensor.spec.name] = self.allocate(part.nbytes)
            ok(self.driver.cuMemcpyHtoD(addresses[tensor.spec.name], part.ctypes.data, part.nbytes))
        return addresses

    def _give_memory(self) -> None:
        """Each tensor has as much as its greatest shape needs; pools have NUM_BLOCKS."""
        for name in self.names:
            source = self.engine.get_aliased_input_tensor(name)
            if source is not None:
                self.addresses[name] = self.addresses[source]
            elif name not in self.addresses:
                self.addresses[name] = self.allocate(int(np.prod(self._greatest(name))) * self.dtype(name).itemsize)
        for name, address in self.addresses.items():
            assert self.context.set_tensor_address(name, address)
        size = self.engine.device_memory_size_v2
        self.context.set_device_memory(self.allocate(size), size)

    def _greatest(self, name: str) -> tuple[int, ...]:
        if self.engine.get_tensor_mode(name) == self.trt.TensorIOMode.OUTPUT:
            return (64, *list(self.engine.get_tensor_shape(name))[1:])
        greatest = list(self.engine.get_tensor_profile_shape(name, 1)[2])
        return (NUM_BLOCKS, greatest[1]) if name.startswith("kv.") else tuple(greatest)

    def allocate(self, size_bytes: int) -> int:
        return int(ok(self.driver.cuMemAlloc(size_bytes)))

    def dtype(self, name: str) -> np.dtype[Any]:
        """bfloat16 as its bits."""
        return np.dtype(_NUMPY_TYPES[self.engine.get_tensor_dtype(name).name])

    def describe(self, token_ids: Sequence[int], start: int, num_rows: int = 1, profile: int = 1) -> dict[str, Array]:
        """Set the shapes of a step with these tokens at positions from `start`, and return its inputs."""
        end = start + len(token_ids)
        values: dict[str, Any] = {
            "token_ids": token_ids,
            "query_starts": [0, len(token_ids)],
            "context_lengths": [end],
            "block_tables.0": [list(range(-(-end // TOKENS_PER_BLOCK)))],
            "logit_rows": range(len(token_ids) - num_rows, len(token_ids)),
            "token_sources": [-1] * len(token_ids),
            "previous_tokens": [0] * 4,
        }
        arrays = {name: np.array(value, np.int32) for name, value in values.items() if name in self.names}
        shapes = {name: array.shape for name, array in arrays.items()}
        shapes |= {name: self._greatest(name) for name in self.names if name in self.pools}
        assert self.context.set_optimization_profile_async(profile, int(self.stream))
        for name, shape in shapes.items():
            assert self.context.set_input_shape(name, shape)
        return arrays

    @property
    def pools(self) -> list[str]:
        aliases = [self.engine.get_aliased_input_tensor(name) for name in self.names]
        return [name for name in aliases if name is not None]

    def upload(self, arrays: Mapping[str, Array]) -> None:
        for name, array in arrays.items():
            ok(self.driver.cuMemcpyHtoD(self.addresses[name], array.ctypes.data, array.nbytes))

    def execute(self) -> bool:
        return bool(self.context.execute_async_v3(int(self.stream)))

    def download(self, name: str) -> Array:
        """An output of the step whose shapes are set."""
        ok(self.driver.cuStreamSynchronize(self.stream))
        array = np.empty(tuple(_sizes(self.context.get_tensor_shape(name))), self.dtype(name))
        ok(self.driver.cuMemcpyDtoH(array.ctypes.data, self.addresses[name], array.nbytes))
        return array

    def step(self, token_ids: Sequence[int], start: int, num_rows: int = 1, profile: int = 1) -> Array:
        """Logits of the last rows."""
        self.upload(self.describe(token_ids, start, num_rows, profile))
        assert self.execute()
        return self.download("logits")


def _sizes(dims: Dims) -> list[int]:
    return [dims[index] for index in range(len(dims))]
