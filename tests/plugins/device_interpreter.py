"""Runs launches in Triton's interpreter, on NumPy arrays, and watches every access to memory.

The environment must hold TRITON_INTERPRET=1 before Triton is imported: this file belongs in a process of its own.
"""

import dataclasses
import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from ml_dtypes import bfloat16
from numpy.typing import NDArray
from triton.runtime import interpreter

from precast.plugins.device.kernel_spec import KernelSpec
from precast.plugins.device.launch import Launch

assert os.environ.get("TRITON_INTERPRET") == "1"


class Memory:
    """The buffers that kernels may touch, and of each element whether it may be read and written."""

    def __init__(self) -> None:
        self._buffers: list[tuple[str, int, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_]]] = []

    def add(
        self,
        name: str,
        array: NDArray[Any],
        readable: NDArray[np.bool_] | bool = False,
        writable: NDArray[np.bool_] | bool = False,
    ) -> None:
        masks = [np.broadcast_to(np.asarray(mask), array.shape).reshape(-1) for mask in (readable, writable)]
        self._buffers.append((name, array.ctypes.data, array, masks[0], masks[1]))

    def check(self, pointers: NDArray[np.uint64], is_write: bool) -> None:
        """Fails if one of these lies outside the buffers, or on an element that is not for this."""
        addresses = pointers.astype(np.int64).reshape(-1)
        for name, base, array, readable, writable in self._buffers:
            if not addresses.size:
                return
            is_inside = (base <= addresses) & (addresses < base + array.nbytes)
            if is_inside.any():
                elements = (addresses[is_inside] - base) // array.itemsize
                assert (writable if is_write else readable)[elements].all(), (
                    f"{'write to' if is_write else 'read of'} {name} at elements that are not for this"
                )
                addresses = addresses[~is_inside]
        assert not addresses.size, f"{'write' if is_write else 'read'} outside every buffer"


def run(
    launches: tuple[Launch, ...], specs: tuple[KernelSpec, ...], arrays: Mapping[str, NDArray[Any]], memory: Memory
) -> None:
    """Executes the launches in order. A bfloat16 array is passed as such; all arrays are changed in place."""
    by_name = {spec.function: spec for spec in specs}
    with _interpreter_mended(memory), np.errstate(all="ignore"):
        for launch in launches:
            spec = by_name[launch.kernel]
            kernel = getattr(importlib.import_module(spec.module), spec.function)
            arguments: dict[str, Any] = {name: _tensor(arrays[name]) for name in launch.buffers}
            kernel[launch.grid](**arguments, **dict(launch.scalars), **dict(spec.constants))


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    if array.dtype == bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


@contextmanager
def _interpreter_mended(memory: Memory) -> Iterator[None]:
    """Watches loads and stores, and mends three things in Triton 3.9's interpreter.

    It multiplies the bit patterns of bfloat16 as integers in tl.dot, and truncates fp32 to bfloat16 instead of rounding
    to the nearest. And it patches triton.language at each call of a function inside a kernel, which has happened when
    the kernel started and takes a third of the time. Checks of integer overflow, another third, are switched off.
    """
    builder = interpreter.InterpreterBuilder
    old = {name: getattr(builder, name) for name in ("create_dot", "create_masked_load", "create_masked_store")}
    old_convert, old_patch = interpreter._convert_float, interpreter._patch_lang
    scopes: dict[tuple[bool, bool], Any] = {}

    def patch_once(function: Any) -> Any:
        """Functions of ours see triton.language, those of its own library see triton.language.core, or both."""
        visible = [id(value) for value in function.__globals__.values()]
        seen = (id(tl) in visible, id(tl.core) in visible)
        if seen not in scopes:
            scopes[seen] = old_patch(function)
        return _NoScope()

    def convert(data: Any, source: Any, target: Any, rounding_mode: Any) -> Any:
        if (source, target) == (tl.float32, tl.bfloat16):
            return data.astype(bfloat16).view(np.uint16)
        if (source, target) == (tl.bfloat16, tl.float32):
            return data.view(bfloat16).astype(np.float32)
        return old_convert(data, source, target, rounding_mode)

    def widened(self: Any, handle: Any) -> Any:
        return self.cast_impl(handle, tl.float32) if handle.dtype.scalar == tl.bfloat16 else handle

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return old["create_dot"](self, widened(self, a), widened(self, b), *rest)

    def load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        memory.check(pointers.data[np.broadcast_to(mask.data, pointers.data.shape)], is_write=False)
        return old["create_masked_load"](self, pointers, mask, *rest)

    def store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        memory.check(pointers.data[np.broadcast_to(mask.data, pointers.data.shape)], is_write=True)
        return old["create_masked_store"](self, pointers, value, mask, *rest)

    interpreter._convert_float, interpreter._patch_lang = convert, patch_once
    old_options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = dataclasses.replace(old_options, sanitize_overflow=False)
    for name, function in {"create_dot": dot, "create_masked_load": load, "create_masked_store": store}.items():
        setattr(builder, name, function)
    try:
        yield
    finally:
        for scope in reversed(scopes.values()):
            scope.restore()
        interpreter._convert_float, interpreter._patch_lang = old_convert, old_patch
        interpreter.interpreter_builder.options = old_options
        for name, function in old.items():
            setattr(builder, name, function)


class _NoScope:
    """What a launch restores when it ends: nothing, as the next one needs the same."""

    def restore(self) -> None:
        pass


assert triton.knobs.runtime.interpret
