"""The forward pass alone: logits of whole sequences, for checking an engine against a reference."""

from __future__ import annotations

import ctypes
import json
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precast.runtime import library as native
from precast.runtime.conversion import int32_array, options_struct
from precast.runtime.errors import ErrorCode, ShutDownError
from precast.runtime.requests import EngineOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Model:
    """An engine directory, loaded without batching, sampling or a thread. Not for concurrent use.

    Args:
        path: the engine directory.
        options: ``max_num_tokens`` is how many tokens are computed at a time; ``max_batch_size`` counts for nothing.

    Raises:
        EngineLoadError: the directory is missing, damaged, or made for another runtime.
        NativeError: ONNX Runtime's library is missing or refuses the graph, or memory is short.
    """

    def __init__(self, path: str | os.PathLike[str], options: EngineOptions | None = None) -> None:
        self._library = native.load_library()
        handle = ctypes.c_void_p()
        struct = options_struct(self._library, options or EngineOptions())
        error = self._library.precast_model_new(os.fsencode(Path(path)), ctypes.byref(struct), ctypes.byref(handle))
        native.check(self._library, error)
        self._options = struct  # holds the callback that the model calls
        self._handle = handle
        self._finalizer = weakref.finalize(self, self._library.precast_model_delete, handle)
        text = ctypes.c_void_p()
        native.check(self._library, self._library.precast_model_info(handle, ctypes.byref(text)))
        self.info: dict[str, Any] = json.loads(native.take_string(self._library, text))

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits after each token: float32 [len(token_ids), vocab_size].

        Raises:
            InvalidRequestError: no tokens, more than max_seq_len, or an id outside the vocabulary.
            ShutDownError: after :meth:`close`.
        """
        if not self._finalizer.alive:
            raise ShutDownError(ErrorCode.SHUT_DOWN, "the model has been closed")
        import numpy as np  # takes 0.1 s, which running an engine does without

        ids = int32_array("token_ids", token_ids)
        logits = np.empty((len(ids), self.info["vocab_size"]), dtype=np.float32)
        error = self._library.precast_model_logits(
            self._handle,
            ids,
            len(ids),
            logits.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            logits.size,
        )
        native.check(self._library, error)
        return logits

    def close(self) -> None:
        """Releases everything. Doing it again changes nothing."""
        self._finalizer()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
