"""Times PagedAttention's device kernels on an NVIDIA GPU, over the time that reading K and V must take.

    python tools/bench/gpu_attention.py --batch 1 8 64 --context 512 4096 32768

Decoding is bound by memory: its floor is the bytes of K and V over the bandwidth of a copy on this GPU. A prompt is
bound by the tensor cores: its row gives the rate of its products, half of the square, to be set against the data sheet.
Each figure is the median of repeated runs of the op's launches, recorded as a graph and timed by events on the stream.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpu import measure_bandwidth
from gpu_timing import Gpu
from precast.plugins.paged_attention.device.kernels import kernel_specs
from precast.plugins.paged_attention.device.launches import StepShape, launches, workspace
from precast.plugins.paged_attention.schema import PagedAttentionAttributes

TOKENS_PER_BLOCK = 64


@dataclass(frozen=True)
class Heads:
    """Of a layer: query heads, KV heads, and their size."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    def attributes(self) -> PagedAttentionAttributes:
        return PagedAttentionAttributes(
            self.num_heads, self.num_kv_heads, self.head_dim, self.head_dim**-0.5, "kvrow.bf16/1", TOKENS_PER_BLOCK
        )


class Bench:
    """The kernels of one layer."""

    def __init__(self, gpu: Gpu, heads: Heads) -> None:
        self._gpu, self._op = gpu, heads.attributes()
        specs = kernel_specs(self._op, heads.head_dim, 1, has_norm=False, has_sinks=False)
        self._launcher = gpu.launcher(specs)

    def seconds(self, sequences: int, context: int, rows: int) -> float:
        """Median time of a step of so many sequences with this context, each with so many rows."""
        op, gpu = self._op, self._gpu
        blocks = -(-context // TOKENS_PER_BLOCK)
        shape = StepShape(sequences * rows, sequences, blocks)
        tables = np.arange(sequences * blocks, dtype=np.int32).reshape(sequences, blocks)
        arrays: dict[str, np.ndarray[Any, Any]] = {
            "query_starts": np.arange(sequences + 1, dtype=np.int32) * rows,
            "context_lengths": np.full(sequences, context, np.int32),
            "block_tables": tables,
            "inv_freq": np.geomspace(1, 1e-4, op.head_dim // 2).astype(np.float32),
        }
        sizes = {
            "qkv": 2 * shape.num_tokens * op.qkv_features,
            "kv": tables.size * op.block_bytes,
            "output": 2 * shape.num_tokens * op.num_heads * op.head_dim,
            "workspace": workspace(op, shape).size_bytes,
            **{name: array.nbytes for name, array in arrays.items()},
        }
        with gpu.memory(sizes) as addresses:
            for name, array in arrays.items():
                gpu.call("cuMemcpyHtoD", addresses[name], array.ctypes.data, array.nbytes)
            for region in workspace(op, shape).regions:
                addresses[region.name] = addresses["workspace"] + region.offset
            steps = launches(op, shape, has_rope=True, has_norm=False, has_sinks=False)

            def run() -> None:
                for launch in steps:
                    self._launcher.launch(launch, addresses, gpu.stream)

            return gpu.seconds(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", nargs=3, type=int, default=[32, 8, 128], metavar=("QUERY", "KV", "SIZE"))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--context", nargs="+", type=int, default=[512, 4096, 32768])
    args = parser.parse_args()
    heads = Heads(*args.heads)
    name, bandwidth = measure_bandwidth()
    bench = Bench(Gpu(), heads)
    print(f"{name}: {bandwidth / 1e9:.0f} GB/s, {heads}\n")
    print("| step | microseconds | of the floor | TFLOP/s |")
    print("| --- | --- | --- | --- |")
    for context in args.context:
        for batch in args.batch:
            seconds = bench.seconds(batch, context, rows=1)
            floor = batch * context * 2 * 2 * heads.num_kv_heads * heads.head_dim / bandwidth
            print(f"| decode, {batch} x {context} | {seconds * 1e6:.0f} | {seconds / floor:.2f} | |", flush=True)
        seconds = bench.seconds(1, context, rows=context)
        flops = 2 * 2 * heads.num_heads * heads.head_dim * context * context / 2
        print(f"| prompt of {context} | {seconds * 1e6:.0f} | | {flops / seconds / 1e12:.1f} |", flush=True)


if __name__ == "__main__":
    main()
