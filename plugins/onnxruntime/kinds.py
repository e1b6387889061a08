"""All ops that this version runs with ONNX Runtime on a device."""

from precast.plugins.all_gather.onnxruntime import KIND as ALL_GATHER
from precast.plugins.all_reduce.onnxruntime import KIND as ALL_REDUCE
from precast.plugins.gated_activation.onnxruntime import KIND as GATED_ACTIVATION
from precast.plugins.greedy_tokens.onnxruntime import KIND as GREEDY_TOKENS
from precast.plugins.onnxruntime.op_kind import OpKind
from precast.plugins.paged_attention.onnxruntime import KIND as PAGED_ATTENTION
from precast.plugins.receive.onnxruntime import KIND as RECEIVE
from precast.plugins.rms_norm.onnxruntime import KIND as RMS_NORM
from precast.plugins.send.onnxruntime import KIND as SEND
from precast.plugins.top_candidates.onnxruntime import KIND as TOP_CANDIDATES

KINDS: tuple[OpKind, ...] = (
    ALL_GATHER,
    ALL_REDUCE,
    GATED_ACTIVATION,
    GREEDY_TOKENS,
    PAGED_ATTENTION,
    RECEIVE,
    RMS_NORM,
    SEND,
    TOP_CANDIDATES,
)
