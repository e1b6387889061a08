"""llama.cpp, through the C API that llama-cpp-python binds, batched as its server batches.

The server's loop (tools/server/server-context.cpp, `update_slots`) is: one token of every sequence that is decoding,
then prompt tokens of the waiting ones up to n_batch, one llama_decode, one token sampled per sequence whose logits are
there. `run` does the same. The server reuses a prefix only within the slot that has computed it, or between copies of
one prompt (its "n" > 1): requests that come at once and share a prefix compute it each. With `copy_prefix` the caller
does what examples/parallel does with a system prompt: decodes the prefix once, and copies its cells to every sequence.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peers.base import About, Precision, RequestRun
from workloads import Request, Workload

FILE_NAME = "model.gguf"
CONTEXT_STEP = 256  # llama.cpp rounds a sequence's context up to this


@dataclass
class Slot:
    """A request on its way: `num_computed` tokens of prompt and output have been given to llama_decode."""

    sequence: int
    request: Request
    run: RequestRun
    num_computed: int = 0

    @property
    def done(self) -> bool:
        return len(self.run.token_ids) == self.request.num_output_tokens

    @property
    def decoding(self) -> bool:
        return bool(self.run.token_ids)

    def next_tokens(self, room: int) -> list[int]:
        if self.decoding:
            return self.run.token_ids[-1:]
        return list(self.request.prompt[self.num_computed : self.num_computed + room])


class Adapter:
    def __init__(self, copy_prefix: bool = False, kv_unified: bool | None = None) -> None:
        """kv_unified: one KV buffer for all sequences; None: if the prefix is copied, else not, as in the server."""
        self.copy_prefix = copy_prefix
        self.kv_unified = copy_prefix if kv_unified is None else kv_unified

    def prepare(self, checkpoint: Path, files: Path) -> None:
        from peers.gguf_checkpoint import write_gguf

        write_gguf(checkpoint, files / FILE_NAME)

    def load(self, files: Path, workload: Workload, num_threads: int) -> None:
        from llama_cpp import llama_cpp as lib

        self.lib = lib
        self._be_quiet()
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(str(files / FILE_NAME).encode(), lib.llama_model_default_params())
        params = lib.llama_context_default_params()
        params.n_seq_max = len(workload.requests)
        per_sequence = -(-workload.max_length // CONTEXT_STEP) * CONTEXT_STEP
        params.n_ctx = per_sequence * len(workload.requests)
        params.n_threads = params.n_threads_batch = num_threads
        params.kv_unified = self.kv_unified
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.model or not self.context:
            raise RuntimeError(f"llama.cpp cannot load {files / FILE_NAME}")
        self.memory = lib.llama_get_memory(self.context)
        self.num_batch_tokens = lib.llama_n_batch(self.context)
        self.vocab_size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.batch = lib.llama_batch_init(self.num_batch_tokens, 0, 1)

    def run(self, workload: Workload) -> list[RequestRun]:
        slots = [Slot(i, request, RequestRun()) for i, request in enumerate(workload.requests)]
        self.lib.llama_memory_clear(self.memory, False)
        if self.copy_prefix:
            self._compute_prefix(slots, workload.num_shared_tokens)
        while active := [slot for slot in slots if not slot.done]:
            self._step(active)
        return [slot.run for slot in slots]

    def about(self) -> About:
        from importlib.metadata import version

        info = self.lib.llama_print_system_info().decode()
        kv_cache = "f16 (its default)"
        how = "llama_batch over all sequences in the order of its server, n_batch 2048, n_ubatch 512, defaults, "
        how += "one KV buffer" if self.kv_unified else "a KV buffer per sequence"
        how += ", prefix computed once and copied by the caller" if self.copy_prefix else ", no prefix shared"
        versions = {"llama-cpp-python": version("llama-cpp-python"), "system": info.strip()}
        return About(versions, Precision("bf16", "bf16", "bf16", kv_cache, "fp32, bf16 in matrix products"), how)

    def _compute_prefix(self, slots: list[Slot], num_tokens: int) -> None:
        if num_tokens == 0:
            return
        first = slots[0]
        while first.num_computed < num_tokens:
            self.batch.n_tokens = 0
            room = min(self.num_batch_tokens, num_tokens - first.num_computed)
            self._add(first, first.next_tokens(room))
            self._decode()
        for slot in slots[1:]:
            self.lib.llama_memory_seq_cp(self.memory, first.sequence, slot.sequence, 0, num_tokens)
            slot.num_computed = num_tokens

    def _step(self, active: list[Slot]) -> None:
        self.batch.n_tokens = 0
        sampled = []
        for slot in sorted(active, key=lambda slot: not slot.decoding):  # stable: decoding ones first, else in order
            room = self.num_batch_tokens - self.batch.n_tokens
            if room == 0:
                break
            self._add(slot, slot.next_tokens(room))
            if slot.decoding or slot.num_computed == len(slot.request.prompt):
                self.batch.logits[self.batch.n_tokens - 1] = 1
                sampled.append(slot)
        self._decode()
        if not sampled:
            return
        logits = np.ctypeslib.as_array(self.lib.llama_get_logits(self.context), (len(sampled), self.vocab_size))
        for slot, token_id in zip(sampled, logits.argmax(axis=1).tolist(), strict=True):
            slot.run.add(token_id)
            if slot.done:
                self.lib.llama_memory_seq_rm(self.memory, slot.sequence, -1, -1)

    def _add(self, slot: Slot, tokens: list[int]) -> None:
        batch = self.batch
        for token in tokens:
            i = batch.n_tokens
            batch.token[i] = token
            batch.pos[i] = slot.num_computed
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = slot.sequence
            batch.logits[i] = 0
            batch.n_tokens += 1
            slot.num_computed += 1

    def _decode(self) -> None:
        status = self.lib.llama_decode(self.context, self.batch)
        if status != 0:
            raise RuntimeError(f"llama_decode answered {status} for a batch of {self.batch.n_tokens} tokens")

    def _be_quiet(self) -> None:
        def ignore(_level: int, _text: bytes, _data: Any) -> None:
            pass

        self.log_callback = self.lib.llama_log_callback(ignore)  # kept: C holds the pointer
        self.lib.llama_log_set(self.log_callback, ctypes.c_void_p(0))
