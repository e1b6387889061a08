"""AllReduce, AllGather, Send and Receive of a step: the real plugins run, when the step does, on arrays of ONNX's."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from precast.plugins.device.op_call import OpCall
from tests.runtime.tensorrt.fake_cuda.errors import Unfinished

Array = NDArray[Any]
_DTYPES: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


class StepCollectives:
    """Those of one engine. A step that has waited for another rank begins again, and what it has met for is kept.

    Args:
        plugins: By the names of their nodes.
    """

    def __init__(self, plugins: Mapping[str, Any]) -> None:
        self._plugins = plugins
        self._met: list[tuple[str, Array]] = []
        self._next = 0

    @contextmanager
    def of_a_step(self) -> Iterator[None]:
        """Collectives that are evaluated in here are this engine's."""
        self._next = 0
        _Collective.current.append(self)
        try:
            yield
        except Unfinished:
            raise
        except BaseException:
            self._met.clear()
            raise
        else:
            self._met.clear()
        finally:
            _Collective.current.pop()

    def run(self, name: str, x: Array, y: Array) -> Array:
        """The output of a node, for which `y` has room."""
        if self._next == len(self._met):
            given = np.ascontiguousarray(x)
            self._plugins[name].run(OpCall([given.shape], [given.ctypes.data], [y.ctypes.data], 0, 0))
            self._met.append((name, y))
        met, y = self._met[self._next]
        assert met == name, f"the step had {met} here, and now it has {name}"
        self._next += 1
        return y


class _Collective(OpRun):
    op_domain = "ai.precast"
    current: ClassVar[list[StepCollectives]] = []

    def _meet(self, x: Array, y: Array) -> tuple[Array]:
        return (self.current[-1].run(self.onnx_node.name, x, y),)


class AllReduce(_Collective):
    def _run(self, x: Array, dtype: str, **rest: Any) -> tuple[Array]:
        assert x.dtype.name == dtype
        return self._meet(x, np.empty(x.shape, x.dtype))


class AllGather(_Collective):
    def _run(self, x: Array, num_ranks: int, dtype: str, **rest: Any) -> tuple[Array]:
        assert x.dtype.name == dtype
        return self._meet(x, np.empty((num_ranks, *x.shape), x.dtype))


class Send(_Collective):
    def _run(self, x: Array, dtype: str, **rest: Any) -> tuple[Array]:
        assert x.dtype.name == dtype
        return self._meet(x, np.full(1, -1, np.int32))


class Receive(_Collective):
    def _run(self, token_ids: Array, num_features: int, dtype: str, **rest: Any) -> tuple[Array]:
        return self._meet(token_ids, np.empty((len(token_ids), num_features), _DTYPES[dtype]))


COLLECTIVES: Sequence[type[OpRun]] = [AllReduce, AllGather, Send, Receive]
