"""PagedAttention, version 1: queries and keys normed and rotated, KV cache, causal attention, in one op.

T = tokens of this step, S = sequences, Hq = num_heads, Hkv = num_kv_heads, G = Hq / Hkv (query heads that share one
KV head), D = head_dim, B = width of the block table, F = sets of rotary frequencies, at least 1.

Inputs
    qkv              float32 [T, (Hq + 2*Hkv) * D]    of each token its query heads, then key heads, then value heads
    query_starts     int32 [S + 1]                    sequence s owns rows query_starts[s] .. query_starts[s+1]-1
    context_lengths  int32 [S]                        tokens of the sequence in the cache after this step
    block_tables     int32 [S, B]                     the blocks of each sequence, -1 where there is none
    kv               uint8 [num_blocks, block_bytes]  the block pool, WRITTEN IN PLACE
    inv_freq         float32 [F, rotary_dim / 2]      optional; absent: no rotary embedding. rotary_dim is even, <= D
    q_norm, k_norm   float32 [D]                      optional, both or neither; absent: no norm of queries and keys
    sinks            float32 [Hq]                     optional; a logit of each query head that only the denominator has
Output
    output           float32 [T, Hq * D]
Attributes
    num_heads, num_kv_heads, head_dim, tokens_per_block   int
    scale                                                 float   multiplies q.k; usually 1/sqrt(D)
    kv_layout                                             string  one of those drawn below
    rope_scaling                                          float   multiplies cos and sin (the "attention factor")
    rope_start                                            int     >= 0; up to this position row 0 of inv_freq rotates
    window                                                int     positions that a row sees, its own included; 0: all
    qk_norm_epsilon                                       float   of the norm of queries and keys
    logit_softcap                                         float   finite, >= 0; bounds the scaled q.k; 0: no bound

query_starts ascends from 0 to T and every sequence has at least one row. Row i of sequence s is at absolute position
p = context_lengths[s] - (query_starts[s+1] - query_starts[s]) + i >= 0 and sees positions w .. p of its own sequence,
where w = max(0, p - window + 1), or 0 without a window. Blocks may be shared by sequences; a position that this step
writes is written by one sequence only.

Entries of the block table count from the block that holds w of the sequence's first row of the step to the one that
holds the last row. All others are never looked at: a block that lies below the window of every row may belong to
somebody else, and its entry be -1.

Query head h belongs to KV head h // G.

logit_softcap and sinks are part of version 1, but the CPU kernels do not have them yet: they refuse a node with a
logit_softcap other than 0 or with a ninth input.

qkv and output are float32 on the CPU, and of the KV layout's element type on a device ("Devices", below).


The pool block: kv16, for the CPU
=================================
Tokens of a block are grouped into tiles of 16. A block of N = tokens_per_block tokens is, without any padding,

    for each KV head:  for each tile of 16 tokens:  K tile, V tile

    block   | head 0                                   | head 1                    | ...
            | tile 0        | tile 1        | ... N/16 | tile 0        | tile 1    |
            | K tile|V tile | K tile|V tile |          | K tile|V tile | ...

    kv16.f32/1   (fp32)          K tile [D][16 tokens]                 V tile [16 tokens][D]
    kv16.bf16/1  (bfloat16)      K tile [D/2][16 tokens][2 dims]       V tile [8 token pairs][D][2 tokens]

Position p lies in block block_tables[s][p // N], tile (p % N) // 16, lane p % 16. A K row of 16 tokens is 64 bytes in
both: one vector register scores 16 tokens at once. A bf16 V row holds tokens 2j and 2j+1 side by side. block_bytes =
2 * Hkv * tokens_per_block * D * (4 or 2).


The pool block: kvrow, for devices
==================================
The tokens of a block are rows, without any padding:

    for each KV head:  K [N tokens][D], then V [N tokens][D]

    block   | head 0                                                 | head 1      | ...
            | K token 0 | K token 1 | ... N | V token 0 | V token 1  | K token 0   |

    kvrow.bf16/1   bfloat16        kvrow.f16/1   IEEE half

Position p lies in block block_tables[s][p // N], row p % N. A row of one head is D * 2 bytes in one piece, and the rows
of a block follow each other: a warp reads whole cache lines, and a tile of keys goes to a tensor core as it lies.
block_bytes = 2 * Hkv * tokens_per_block * D * 2.


Phase 1: write
==============
For every token of the step, before any query of the step reads the pool:

1. With q_norm and k_norm, replace each query head by its RmsNorm with weight q_norm and epsilon qk_norm_epsilon, and
   each key head likewise with k_norm: y of plugins/rms_norm/schema.py, bit for bit, a head being a row.
2. Rotate each query and key head (NeoX style, "rotate half", over the first R = rotary_dim elements; the rest pass):
       angle[i] = float32(p) * inv_freq[f][i]                          one fp32 product, i < R/2
       c[i] = cos(angle[i]) * rope_scaling                             cos and sin within 2e-7 up to 2^30 radians
       s[i] = sin(angle[i]) * rope_scaling
       x'[i]       = x[i] * c[i] - x[i + R/2] * s[i]                   products rounded, then the difference
       x'[i + R/2] = x[i + R/2] * c[i] + x[i] * s[i]
   where f = min(max(0, p - rope_start), F - 1): row 0 as far as rope_start, then a row for each position.
3. Round q, k and v to the cache's type (bf16, fp16: to nearest, ties to even; fp32: nothing to do).
4. In a kv16 layout, when p % 16 == 0, zero the whole K and V tile. Then store k and v of the token.

So whatever an earlier owner left in a block can never be read: every tile is zeroed by the request that starts it.
In a kvrow layout nothing is zeroed: nobody loads a position that no row sees.


Phase 2: attend
===============
Queries read K and V from the pool only, also those of this step. A *split* is 512 tokens, aligned to position 0. For
one row at position p and one head, for each split from the one that holds w to the one that holds p, in this order:

    x[j] = scale * sum_d q[d] * k[j][d]   j = positions of the split in w .. p; one fp32 sum, d ascending
    x[j] = logit_softcap * tanh(x[j] / logit_softcap)           only if logit_softcap > 0
    m    = max_j x[j]
    e[j] = exp(x[j] - m)
    l    = sum_j e[j]                     16 partial sums: lane j % 16 adds its tiles in ascending order; then lanes
                                          combine as l[i] + l[i+8], then + 4, 2, 1
    a[d] = sum_j round(e[j]) * v[j][d]    one fp32 sum, j ascending; round: to the cache's type, ties to even

The denominator l sums the unrounded e. The first split gives (M, L, A) = (m, l, a); each further one is merged:

    M' = max(M, m);  f = exp(M - M');  g = exp(m - M');  L' = L*f + l*g;  A'[d] = A[d]*f + a[d]*g

With sinks, the sink of the query head h is merged as one more split would be whose (m, l, a) is (sinks[h], 1, 0): once
for each row and head, after the last split, whatever the row sees.

    M' = max(M, sinks[h]);  f = exp(M - M');  L' = L*f + exp(sinks[h] - M');  A'[d] = A[d]*f

So it takes part in the maximum and adds to the denominator, and has no value. It is neither scaled nor capped, has no
position, and no window hides it. Splits know nothing of it: their (M, L, A) are those of a node without sinks.

At last, output[d] = A[d] * (1 / L). Positions outside w .. p take no part: their e is exactly 0 and their v is not even
multiplied, so a NaN or infinity in a token that a row does not see does not change the row. A lane that has added
nothing to l counts as 0, and tiles in which a row sees nothing are left out.

In a bf16 cache the sums over d and j go pair by pair (dims 2i and 2i+1; positions 2i and 2i+1), the odd one of a pair
first, as VDPBF16PS does; products are exact in fp32. Kernel levels differ: in an fp32 cache avx2 and avx512 fuse
multiplications with additions; in a bf16 cache avx512 takes subnormal numbers for zero in these sums, the other levels
keep them; and exp may differ in its last bit. Within one level nothing else enters: a row's bits are a function of its
q, of the stored k and v of positions w .. p, of p, and of the sinks. Not of the other rows, the chunk that a token
arrived in, block ids, tokens_per_block or the number of threads.


Devices
=======
A device kernel works on the kvrow layouts. It means the same, and may differ from the above in this:

- qkv and output are of the layout's type, bfloat16 or float16. Norm, rotation, scores, softmax and sums stay fp32.
- The order of sums, of squares too, is the kernel's own, and so are the tiles over which a running maximum is kept:
  e is rounded relative to the maximum so far instead of that of a split.
- Partial results are merged at multiples of 512 tokens from position 0, but not at each (device/decode_kernel.py).
- A capped score lies within logit_softcap * 7e-7 of the exact one.
- A row that sees an infinity in v may get a NaN where the sums above give an infinity.
- A row's bits depend on whether its sequence has one row in the step or more: two kernels. By construction nothing
  else enters, neither the chunk nor other sequences.
- scale must be above 0, head_dim at most 256, and at most 128 query heads may share a KV head, 64 where head_dim is
  above 128.

Sources: Su et al., "RoFormer", 2021, https://arxiv.org/abs/2104.09864 (rotary embedding); Kwon et al.,
"PagedAttention", 2023, https://arxiv.org/abs/2309.06180 (block pool); Dao et al., "FlashAttention", 2022,
https://arxiv.org/abs/2205.14135 (merging); Gemma Team, "Gemma 2", 2024, https://arxiv.org/abs/2408.00118
(soft-capping); OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", 2025, https://arxiv.org/abs/2508.10925 (learned sinks);
Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023, https://arxiv.org/abs/2309.17453 (why
softmax wants one). Where the two enter is read from eager_attention_forward in transformers 5.24: that of
models/gemma2/modeling_gemma2.py caps after the scale and before the mask; that of models/gpt_oss/modeling_gpt_oss.py
puts the sinks, as they are, beside the scaled and masked scores, and drops their probabilities after the softmax.
"""

import math
from dataclasses import dataclass

from precast.plugins import domain

DOMAIN = domain.DOMAIN
NAME = "PagedAttention"
VERSION = 1

TOKENS_PER_TILE = 16
TOKENS_PER_SPLIT = 512
ELEMENT_BYTES = {"kv16.f32/1": 4, "kv16.bf16/1": 2, "kvrow.bf16/1": 2, "kvrow.f16/1": 2}
"""The KV layouts of this version, and the bytes of one stored number."""
KV_LAYOUTS = tuple(ELEMENT_BYTES)
CPU_KV_LAYOUTS = ("kv16.f32/1", "kv16.bf16/1")
"""Those that the CPU kernels read and write."""
DEVICE_KV_LAYOUTS = ("kvrow.bf16/1", "kvrow.f16/1")
"""Those that the device kernels read and write."""


@dataclass(frozen=True)
class PagedAttentionAttributes:
    """The op's attributes. Raises ValueError where they make no sense."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    kv_layout: str
    tokens_per_block: int
    rope_scaling: float = 1.0
    window: int = 0
    qk_norm_epsilon: float = 0.0
    rope_start: int = 0
    logit_softcap: float = 0.0

    def __post_init__(self) -> None:
        if self.kv_layout not in KV_LAYOUTS:
            raise ValueError(
                f"PagedAttention: kv_layout is {self.kv_layout!r}; version {VERSION} knows {', '.join(KV_LAYOUTS)}"
            )
        if self.num_kv_heads < 1 or self.num_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"PagedAttention: {self.num_heads} query heads cannot share {self.num_kv_heads} KV heads evenly; "
                "num_heads must be a positive multiple of num_kv_heads"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"PagedAttention: head_dim is {self.head_dim}; it must be positive and even")
        if self.tokens_per_block < 1 or self.tokens_per_block % TOKENS_PER_TILE:
            raise ValueError(
                f"PagedAttention: tokens_per_block is {self.tokens_per_block}; "
                f"it must be a positive multiple of {TOKENS_PER_TILE}"
            )
        if not math.isfinite(self.scale) or not math.isfinite(self.rope_scaling):
            raise ValueError(
                f"PagedAttention: scale is {self.scale} and rope_scaling is {self.rope_scaling}; both must be finite"
            )
        if not 0 <= self.rope_start < 2**31:
            raise ValueError(f"PagedAttention: rope_start is {self.rope_start}; it must be a position below 2^31")
        if not 0 <= self.window < 2**31:
            raise ValueError(
                f"PagedAttention: window is {self.window}; it must be a number of positions below 2^31, or 0 for all"
            )

        if not math.isfinite(self.qk_norm_epsilon) or self.qk_norm_epsilon < 0:
            raise ValueError(
                f"PagedAttention: qk_norm_epsilon is {self.qk_norm_epsilon}; it must be finite and not negative"
            )
        if not math.isfinite(self.logit_softcap) or self.logit_softcap < 0:
            raise ValueError(
                f"PagedAttention: logit_softcap is {self.logit_softcap}; it must be finite and not negative"
            )

    @property
    def queries_per_kv(self) -> int:
        """G: query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    def first_visible(self, position: int) -> int:
        """w: the first position that a row at this position sees."""
        return max(0, position - self.window + 1) if self.window else 0

    @property
    def qkv_features(self) -> int:
        """Columns of the input `qkv`."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of the pool, K and V of all KV heads."""
        return 2 * self.num_kv_heads * self.tokens_per_block * self.head_dim * ELEMENT_BYTES[self.kv_layout]
