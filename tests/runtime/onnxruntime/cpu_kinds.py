"""Our ops as they would run on a device, computed in NumPy on memory of the host: the references, in float16.

Collectives are the real ones, whose group meets through what stands in for NCCL.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precast.plugins.device.op_call import OpCall
from precast.plugins.gated_activation.reference import gated_activation
from precast.plugins.gated_activation.schema import GatedActivationAttributes
from precast.plugins.greedy_tokens.reference import greedy_tokens
from precast.plugins.onnxruntime.kinds import KINDS
from precast.plugins.onnxruntime.op_kind import OpKind, Tools
from precast.plugins.paged_attention.reference import paged_attention
from precast.plugins.top_candidates.reference import top_candidates
from tests.runtime.tensorrt.fake_cuda.errors import Unfinished

Array = NDArray[Any]


def at(address: int, shape: Sequence[int], dtype: Any) -> Array:
    """An array over memory."""
    import ctypes

    dtype = np.dtype(dtype)
    data = (ctypes.c_uint8 * (prod(shape) * dtype.itemsize)).from_address(address)
    return np.frombuffer(data, dtype).reshape(shape)


def _rms_norm(fields: Any, tools: Tools, call: OpCall) -> None:
    x, weight = (at(call.inputs[i], call.shapes[i], np.float16).astype(np.float32) for i in (0, 1))
    if fields.has_residual:
        x = (x + at(call.inputs[2], call.shapes[2], np.float16)).astype(np.float16)
        at(call.outputs[1], call.shapes[0], np.float16)[...] = x
        x = x.astype(np.float32)
    assert len(call.outputs) == 1 + fields.has_residual
    scale = 1 / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + np.float32(fields.epsilon))
    rounded = (x * scale).astype(np.float16).astype(np.float32)
    at(call.outputs[0], call.shapes[0], np.float16)[...] = rounded * weight


def _gated_activation(fields: Any, tools: Tools, call: OpCall) -> None:
    gate_up = at(call.inputs[0], call.shapes[0], np.float16).astype(np.float32)
    product = gated_activation(gate_up, GatedActivationAttributes(fields.activation))
    at(call.outputs[0], product.shape, np.float16)[...] = product


def _greedy_tokens(fields: Any, tools: Tools, call: OpCall) -> None:
    (rows, vocab_size), workspace = call.shapes[0], call.workspace_address
    assert vocab_size == fields.vocab_size
    at(workspace, (4,), np.uint8)[...] = 0xA5  # somebody else's, until the next op
    tokens, log_sums = greedy_tokens(at(call.inputs[0], call.shapes[0], np.float32))
    at(call.outputs[0], (rows,), np.int32)[...] = tokens
    at(call.outputs[1], (rows,), np.float32)[...] = log_sums


def _paged_attention(fields: Any, tools: Tools, call: OpCall) -> None:
    assert len(call.inputs) == fields.num_inputs
    qkv = at(call.inputs[0], call.shapes[0], np.float16).astype(np.float32)
    starts, lengths, tables = (at(call.inputs[i], call.shapes[i], np.int32) for i in (1, 2, 3))
    pool = at(call.inputs[4], (*call.shapes[4][:1], 2 * call.shapes[4][1]), np.uint8)
    at(call.workspace_address, (4,), np.uint8)[...] = 0xA5
    optional = [at(*each, np.float32) for each in zip(call.inputs[5:], call.shapes[5:], strict=False)]
    inv_freq = optional.pop(0) if fields.has_rope else None
    sinks = optional.pop() if fields.has_sinks else None
    q_norm, k_norm = optional or (None, None)
    output = paged_attention(qkv, starts, lengths, tables, pool, fields.attributes, inv_freq, q_norm, k_norm, sinks)
    at(call.outputs[0], output.shape, np.float16)[...] = output


def _top_candidates(fields: Any, tools: Tools, call: OpCall) -> None:
    (rows, vocab_size), num_candidates = call.shapes[0], fields.num_candidates
    assert vocab_size == fields.vocab_size
    at(call.workspace_address, (4,), np.uint8)[...] = 0xA5
    ids, logits = top_candidates(at(call.inputs[0], call.shapes[0], np.float32), num_candidates)
    at(call.outputs[0], (rows, num_candidates), np.int32)[...] = ids
    at(call.outputs[1], (rows, num_candidates), np.float32)[...] = logits


_RUNS: dict[str, Callable[[Any, Tools, OpCall], None]] = {
    "RmsNorm": _rms_norm,
    "GatedActivation": _gated_activation,
    "GreedyTokens": _greedy_tokens,
    "PagedAttention": _paged_attention,
    "TopCandidates": _top_candidates,
}


class Meetings:
    """The collectives of a step. One that has waited for another rank begins again, and what it has met for is kept."""

    def __init__(self) -> None:
        self._met: list[tuple[OpKind, list[Array]]] = []
        self._next = 0

    @contextmanager
    def of_a_step(self) -> Iterator[None]:
        """Around a run of the graph."""
        self._next = 0
        try:
            yield
        except Unfinished:
            raise
        except BaseException:
            self._met.clear()
            raise
        assert self._next == len(self._met), "the step has met for something that it has not come to"
        self._met.clear()

    def wrap(self, kind: OpKind) -> OpKind:
        """The op, which gives in a step that begins again what it gave before."""

        def run(fields: Any, tools: Tools, call: OpCall) -> None:
            shapes = kind.output_shapes(fields, call.shapes)
            dtypes = [{"half": np.float16, "int32": np.int32}[each] for each in kind.outputs]
            outputs = [at(*each) for each in zip(call.outputs, shapes, dtypes, strict=True)]
            if self._next == len(self._met):
                kind.run(fields, tools, call)
                self._met.append((kind, [output.copy() for output in outputs]))
            met, given = self._met[self._next]
            assert met is kind, f"the step had {met.name} here, and now it has {kind.name}"
            for output, array in zip(outputs, given, strict=True):
                output[...] = array
            self._next += 1

        return replace(kind, run=run)


MEETINGS = Meetings()
"""Of this process, in which one rank runs."""
CPU_KINDS: tuple[OpKind, ...] = tuple(
    replace(kind, run=_RUNS[kind.name]) if kind.name in _RUNS else MEETINGS.wrap(kind) for kind in KINDS
)
