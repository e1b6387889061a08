"""What ranks hand to each other: sums of partial products, columns of logits, activations from stage to stage."""

import onnx_ir as ir

from precast.builder.network.emitter import Emitter
from precast.builder.network.inputs import SENT_ROWS
from precast.builder.network.nodes import precast_node
from precast.plugins.all_gather import schema as all_gather
from precast.plugins.all_reduce import schema as all_reduce
from precast.plugins.receive import schema as receive
from precast.plugins.send import schema as send


def emit_all_reduce(emitter: Emitter, x: ir.Value, features: int) -> ir.Value:
    """The sum of all tensor ranks' x [rows, features]; x itself where there is one."""
    num_ranks = emitter.tensor_parallel_size
    if num_ranks == 1:
        return x
    return emitter.op(
        all_reduce, all_reduce.AllReduceAttributes(num_ranks=num_ranks), [x], f"{x.name}.all_reduce", features
    )


def emit_all_gather(emitter: Emitter, x: ir.Value, features: int) -> ir.Value:
    """The first `features` of all tensor ranks' columns side by side, on tensor rank 0; x itself where there is one."""
    num_ranks = emitter.tensor_parallel_size
    if num_ranks == 1:
        return x
    attributes = all_gather.AllGatherAttributes(num_ranks=num_ranks, num_features=features, root=0)
    return emitter.op(all_gather, attributes, [x], f"{x.name}.all_gather", features)


def emit_send(emitter: Emitter, x: ir.Value) -> ir.Value:
    """Hand x to the next stage. The output is the number of rows: a graph must have one."""
    rows = ir.Value(name=SENT_ROWS, shape=ir.Shape((1,)), type=ir.TensorType(ir.DataType.INT32))
    emitter.network.graph.append(precast_node(send, send.SendAttributes(), [x], [rows], "send"))
    return rows


def emit_receive(emitter: Emitter, features: int) -> ir.Value:
    """What the stage before has sent, float32 [num_tokens, features]."""
    attributes = receive.ReceiveAttributes(num_features=features)
    return emitter.op(receive, attributes, [emitter.inputs.token_ids], "receive", features)
