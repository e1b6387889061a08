"""What the graph computes besides logits, so that whole rows of them need not cross to the host."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from precast.builder.network.inputs import LOGITS, NUM_LOGIT_ROWS, NUM_TOKENS
from precast.builder.network.network import Network
from precast.builder.network.nodes import Op
from precast.builder.passes.base import Pass
from precast.builder.plan import BuildPlan
from precast.plugins.greedy_tokens import schema as greedy_tokens
from precast.plugins.top_candidates import schema as top_candidates

MAX_CANDIDATES = 64
"""Of a row: more than what top_k and logprobs usually are, and a part of a thousand of a row."""
_FLOAT, _INT32, _INT64, _BOOL = ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL


class ChooseTokens(Pass):
    """Add the choice of tokens to a graph that computes logits.

    R = rows of logits, V = vocabulary, K = the least of MAX_CANDIDATES and V.

    1. The output `tokens` int32 [R] has of each row the largest logit, the smallest id among equals; V of a row that
       has none, which is one with NaN.
    2. `candidate_ids` int32 and `candidate_logits` float32 [R, K] are its K largest logits, in descending order: of
       equal ones the smallest id first where our op chooses, in an order of TensorRT's where its TopK does. `log_sums`
       float32 [R] is the log of the sum of exp(logit) over the row.
    3. The input `token_sources` int32 [num_tokens] says for each token of a step where it comes from: -1: it is
       token_ids'; i: it is element i of the input `previous_tokens` int32 [max_batch_size], where the session leaves
       the tokens of the step before. So a step can be described, and begin, before its tokens reach the host. Only
       where the graph embeds tokens too: pipeline stages are not one graph.
    """

    name = "choose_tokens"

    def __init__(self, plan: BuildPlan, *, has_ops: bool) -> None:
        """`has_ops`: by our ops GreedyTokens and TopCandidates, and not by ONNX's operators, which TensorRT fuses."""
        assert plan.device is not None  # these backends' plans have it
        self._max_batch_size, self._has_ops = plan.device.max_batch_size, has_ops

    def apply(self, network: Network) -> bool:
        graph = network.graph
        logits = next((value for value in graph.outputs if value.name == LOGITS), None)
        token_ids = next(value for value in graph.inputs if value.name == "token_ids")
        if logits is None:
            return False
        assert logits.shape is not None  # an output of the emitter's
        vocab_size = int(str(logits.shape.dims[1]))
        _Choice(graph, logits, vocab_size, self._has_ops).emit()
        if all(use.node.domain == "" for use in token_ids.uses()):  # Receive reads their number only
            self._resolve(graph, token_ids, vocab_size)
        return True

    def _resolve(self, graph: ir.Graph, token_ids: ir.Value, vocab_size: int) -> None:
        """3."""
        sources = _value("token_sources", _INT32, NUM_TOKENS)
        previous = _value("previous_tokens", _INT32, self._max_batch_size)
        readers = list(token_ids.uses())
        first = next(node for node in graph if any(use.node is node for use in readers))
        emit = _Emitter(graph, first)
        zero = emit.constant("token_sources.zero", np.array(0, np.int32))
        is_known = emit("Less", [sources, zero], _value("token_ids.is_known", _BOOL, NUM_TOKENS))
        rows = emit("Max", [sources, zero], _value("token_sources.rows", _INT32, NUM_TOKENS))
        taken = emit("Gather", [previous, rows], _value("token_ids.taken", _INT32, NUM_TOKENS), axis=0)
        # A row with NaN has chosen no token. What its sequence goes on with matters to nobody, but it must be one.
        last = emit.constant("token_ids.last", np.array(vocab_size - 1, np.int32))
        chosen = emit("Min", [taken, last], _value("token_ids.chosen", _INT32, NUM_TOKENS))
        resolved = emit("Where", [is_known, token_ids, chosen], _value("token_ids.resolved", _INT32, NUM_TOKENS))
        for use in readers:
            use.node.replace_input_with(use.idx, resolved)
        graph.inputs.extend([sources, previous])


class _Choice:
    """Emits what follows from the logits, behind the last node."""

    def __init__(self, graph: ir.Graph, logits: ir.Value, vocab_size: int, has_ops: bool) -> None:
        self._graph, self._logits, self._vocab_size = graph, logits, vocab_size
        self._has_ops = has_ops
        self._emit = _Emitter(graph)

    def emit(self) -> None:
        tokens, log_sums = self._greedy_tokens() if self._has_ops else self._reductions()
        outputs = [tokens, *self._candidates(), log_sums]
        place = list(self._graph.outputs).index(self._logits) + 1
        for output in reversed(outputs):
            self._graph.outputs.insert(place, output)

    def _greedy_tokens(self) -> tuple[ir.Value, ir.Value]:
        """1. and log_sums of 2., by the op."""
        tokens, log_sums = _value("tokens", _INT32, NUM_LOGIT_ROWS), _value("log_sums", _FLOAT, NUM_LOGIT_ROWS)
        self._append_op(greedy_tokens, "tokens", [tokens, log_sums])
        return tokens, log_sums

    def _append_op(self, op: Op, name: str, outputs: Sequence[ir.Value], **attributes: int) -> None:
        values = ir.convenience.convert_attributes({"vocab_size": self._vocab_size, **attributes})
        inputs = [self._logits]
        self._graph.append(ir.Node(op.DOMAIN, op.NAME, inputs, values, outputs=outputs, version=op.VERSION, name=name))

    def _reductions(self) -> tuple[ir.Value, ir.Value]:
        """The same by ONNX's operators."""
        self._axis = self._emit.constant(f"{LOGITS}.axis", np.array([1], np.int64))
        most = self._reduce("ReduceMax", self._logits, f"{LOGITS}.max", _FLOAT, keepdims=1)
        return self._tokens(most), self._log_sums(most)

    def _tokens(self, most: ir.Value) -> ir.Value:
        """1."""
        ids = self._emit.constant(f"{LOGITS}.ids", np.arange(self._vocab_size, dtype=np.int32)[None])
        none = self._emit.constant(f"{LOGITS}.no_id", np.array([[self._vocab_size]], np.int32))
        is_most = self._emit("Equal", [self._logits, most], self._row(f"{LOGITS}.is_max", _BOOL))
        places = self._emit("Where", [is_most, ids, none], self._row(f"{LOGITS}.max_ids", _INT32))
        return self._reduce("ReduceMin", places, "tokens", _INT32, keepdims=0)

    def _candidates(self) -> Sequence[ir.Value]:
        """2."""
        count = min(MAX_CANDIDATES, self._vocab_size)
        if self._has_ops:
            ids = _value("candidate_ids", _INT32, NUM_LOGIT_ROWS, count)
            found = _value("candidate_logits", _FLOAT, NUM_LOGIT_ROWS, count)
            self._append_op(top_candidates, "candidates", [ids, found], num_candidates=count)
            return ids, found
        size = self._emit.constant("candidates.count", np.array([count], np.int64))
        logits = _value("candidate_logits", _FLOAT, NUM_LOGIT_ROWS, count)
        wide = _value("candidate_ids.int64", _INT64, NUM_LOGIT_ROWS, count)
        self._emit("TopK", [self._logits, size], logits, wide, axis=-1, largest=1, sorted=1)
        ids = _value("candidate_ids", _INT32, NUM_LOGIT_ROWS, count)
        return self._emit("Cast", [wide], ids, to=_INT32.value), logits

    def _log_sums(self, most: ir.Value) -> ir.Value:
        """2. The largest logit is taken out first: exp of others cannot overflow then."""
        below = self._emit("Sub", [self._logits, most], self._row(f"{LOGITS}.below_max", _FLOAT))
        exp = self._emit("Exp", [below], self._row(f"{LOGITS}.exp", _FLOAT))
        mass = self._reduce("ReduceSum", exp, f"{LOGITS}.mass", _FLOAT, keepdims=1)
        log = self._emit("Log", [mass], _value(f"{LOGITS}.log_mass", _FLOAT, NUM_LOGIT_ROWS, 1))
        total = self._emit("Add", [most, log], _value("log_sums.column", _FLOAT, NUM_LOGIT_ROWS, 1))
        return self._emit("Squeeze", [total, self._axis], _value("log_sums", _FLOAT, NUM_LOGIT_ROWS))

    def _reduce(self, op_type: str, x: ir.Value, name: str, dtype: ir.DataType, keepdims: int) -> ir.Value:
        output = _value(name, dtype, NUM_LOGIT_ROWS, *(1,) * keepdims)
        return self._emit(op_type, [x, self._axis], output, keepdims=keepdims)

    def _row(self, name: str, dtype: ir.DataType) -> ir.Value:
        return _value(name, dtype, NUM_LOGIT_ROWS, self._vocab_size)


class _Emitter:
    """Adds nodes before a given one, or behind all."""

    def __init__(self, graph: ir.Graph, before: ir.Node | None = None) -> None:
        self._graph, self._before = graph, before

    def __call__(self, op_type: str, inputs: Sequence[ir.Value], *outputs: ir.Value, **attributes: int) -> ir.Value:
        """The first output of the new node, which has its name."""
        self._add(
            ir.Node(
                "",
                op_type,
                inputs,
                ir.convenience.convert_attributes(attributes),
                outputs=outputs,
                name=str(outputs[0].name),
            )
        )
        return outputs[0]

    def constant(self, name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
        """A constant in the graph itself: an initialiser would be one of the weights, which others may replace."""
        tensor = ir.tensor(array, name=name)
        output = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
        self._add(ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], outputs=[output], name=name))
        return output

    def _add(self, node: ir.Node) -> None:
        if self._before is None:
            self._graph.append(node)
        else:
            self._graph.insert_before(self._before, node)


def _value(name: str, dtype: ir.DataType, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
