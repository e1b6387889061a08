"""Progress bars, drawn by tqdm or by whatever takes its place."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from precast.outputs import RequestOutput


def _tqdm() -> Callable[..., Any]:
    from tqdm import tqdm

    bar: Callable[..., Any] = tqdm
    return bar


class RequestBar:
    """Requests done, and tokens per second read and written.

    Args:
        total: number of requests.
        use_tqdm: False draws nothing; a callable is used in place of ``tqdm.tqdm``.
    """

    def __init__(self, total: int, use_tqdm: bool | Callable[..., Any]) -> None:
        self._bar: Any = None
        if use_tqdm:
            make = use_tqdm if callable(use_tqdm) else _tqdm()
            self._bar = make(total=total, desc="Processed prompts", unit="prompt", dynamic_ncols=True)
        self._start = time.perf_counter()
        self._num_input_tokens = 0
        self._num_output_tokens = 0

    def request_done(self, output: RequestOutput) -> None:
        if self._bar is None:
            return
        self._num_input_tokens += len(output.prompt_token_ids)
        self._num_output_tokens += sum(completion.length for completion in output.outputs)
        elapsed_s = time.perf_counter() - self._start
        self._bar.set_postfix_str(
            f"input {self._num_input_tokens / elapsed_s:.1f} tok/s, "
            f"output {self._num_output_tokens / elapsed_s:.1f} tok/s",
            refresh=False,
        )
        self._bar.update(1)

    def __enter__(self) -> RequestBar:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.close()


class BytesBar:
    """A bar per stage, counting bytes. Fits the builder's progress callback: (stage, bytes done, bytes in all)."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""

    def __call__(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        if stage != self._stage:
            self.close()
            self._stage = stage
            self._bar = _tqdm()(
                total=total_bytes,
                desc=stage,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                dynamic_ncols=True,
                disable=None,  # a log file wants no bars
            )
        self._bar.update(done_bytes - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> BytesBar:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
