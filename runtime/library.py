"""``precast.h`` in ctypes: the functions, and where the shared libraries lie.

One library serves every Python version, since nothing is compiled against Python. Nothing here is public; use
:class:`precast.runtime.Engine`.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from precast.runtime.errors import make_error
from precast.runtime.structs import EngineOptionsStruct, EventStruct, RequestStruct, SamplingStruct, SessionTableStruct
from precast.version import __version__

# The ABI that structs.py describes: the number in libprecast's soname.
_LIBRARY_NAME = "libprecast.so.0"


# name: (result, arguments). A result of c_void_p is a precast_error_t *, NULL for success.
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "precast_version": (c_uint32, []),
    "precast_version_string": (c_char_p, []),
    "precast_error_code": (c_int32, [c_void_p]),
    "precast_error_message": (c_char_p, [c_void_p]),
    "precast_error_delete": (None, [c_void_p]),
    "precast_error_new": (c_void_p, [c_int32, c_char_p]),
    "precast_string_delete": (None, [c_void_p]),
    "precast_engine_options_init": (None, [POINTER(EngineOptionsStruct), c_size_t]),
    "precast_engine_new": (c_void_p, [c_char_p, POINTER(EngineOptionsStruct), POINTER(c_void_p)]),
    "precast_engine_delete": (None, [c_void_p]),
    "precast_engine_shutdown": (c_void_p, [c_void_p]),
    "precast_engine_info": (c_void_p, [c_void_p, POINTER(c_void_p)]),
    "precast_engine_stats": (c_void_p, [c_void_p, POINTER(c_void_p)]),
    "precast_engine_iteration_stats": (c_void_p, [c_void_p, POINTER(c_void_p)]),
    "precast_engine_kv_events": (c_void_p, [c_void_p, POINTER(c_void_p)]),
    "precast_engine_reset_prefix_cache": (c_void_p, [c_void_p]),
    "precast_model_new": (c_void_p, [c_char_p, POINTER(EngineOptionsStruct), POINTER(c_void_p)]),
    "precast_model_delete": (None, [c_void_p]),
    "precast_model_info": (c_void_p, [c_void_p, POINTER(c_void_p)]),
    "precast_model_logits": (c_void_p, [c_void_p, POINTER(c_int32), c_size_t, POINTER(c_float), c_size_t]),
    "precast_sampling_init": (None, [POINTER(SamplingStruct), c_size_t]),
    "precast_request_init": (None, [POINTER(RequestStruct), c_size_t]),
    "precast_engine_submit": (c_void_p, [c_void_p, POINTER(POINTER(RequestStruct)), c_size_t, POINTER(c_uint32)]),
    "precast_engine_cancel": (c_void_p, [c_void_p, c_uint64, POINTER(c_uint32)]),
    "precast_engine_wait": (
        c_void_p,
        [c_void_p, POINTER(EventStruct), c_size_t, c_size_t, c_int64, POINTER(c_size_t)],
    ),
    "precast_worker_run": (c_void_p, [POINTER(c_char_p), c_size_t, POINTER(SessionTableStruct), POINTER(c_int32)]),
    "precast_event_clear": (None, [POINTER(EventStruct), c_size_t]),
    "precast_engine_event_fd": (c_void_p, [c_void_p, POINTER(c_int)]),
}


def library_path() -> Path:
    """``libprecast``: where the variable PRECAST_LIBRARY says, else the one installed with this package.

    An editable install has its Python files in the repository and its library in site-packages, so the whole
    path of the package is searched.

    Raises:
        FileNotFoundError: the package was installed without its native half.
    """
    chosen = os.environ.get("PRECAST_LIBRARY")
    if chosen:
        return Path(chosen)
    package = importlib.import_module("precast.runtime")
    candidates = [Path(folder) / "lib" / _LIBRARY_NAME for folder in package.__path__]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"{_LIBRARY_NAME} is not in {' or '.join(str(path.parent) for path in candidates)}: "
        "install precast with pip, which builds it, or set PRECAST_LIBRARY to its path"
    )


def onnxruntime_path() -> Path | None:
    """The shared library inside the installed ``onnxruntime`` package, found without importing that package.

    None where the package is not installed: the native library then looks along the loader's path.
    """
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return None
    found = sorted((Path(spec.origin).parent / "capi").glob("libonnxruntime.so*"))
    return found[-1] if found else None


@functools.cache
def load_library() -> ctypes.CDLL:
    """``libprecast``, opened once, with the types of its functions declared.

    Raises:
        FileNotFoundError: it is not installed.
        OSError: it cannot be opened, or it is too old.
    """
    path = library_path()
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _FUNCTIONS.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise OSError(
                f"{path} has no function {name}, so it is older than precast {__version__} in Python: reinstall precast"
            ) from error
        function.restype = result
        function.argtypes = arguments
    return library


def read_error(library: ctypes.CDLL, error: int | None) -> Exception | None:
    """The exception for a ``precast_error_t *``, which stays its owner's. None for NULL."""
    if not error:
        return None
    message: bytes = library.precast_error_message(error)
    return make_error(library.precast_error_code(error), message.decode("utf-8", "replace"))


def check(library: ctypes.CDLL, error: int | None) -> None:
    """Raises what ``error``, a ``precast_error_t *``, says, and releases it; NULL says nothing."""
    exception = read_error(library, error)
    if exception is not None:
        library.precast_error_delete(error)
        raise exception


def take_string(library: ctypes.CDLL, pointer: c_void_p) -> str:
    """The text of a string that the library gave to its caller; releases it."""
    try:
        return ctypes.string_at(pointer.value or 0).decode("utf-8")
    finally:
        library.precast_string_delete(pointer)
