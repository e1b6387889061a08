"""Linear becomes Gemm, over a plain weight or over one that is dequantised."""

import onnx_ir as ir

from precast.builder.backends.lowering.lower_op import LowerOp, like, replace_node
from precast.builder.backends.lowering.plain_weights import plain_matrix
from precast.builder.network.network import DTYPES, Network
from precast.builder.network.nodes import builtin_node, input_at, required_input
from precast.builder.plan import BuildPlan
from precast.builder.quantize.formats import quant_format
from precast.builder.quantize.recipe import Part, QuantizedRecipe
from precast.plugins.linear import schema as linear

HEAD = "lm_head"


class LowerLinears(LowerOp):
    """Replace Linear(x, weight[, bias]) by Gemm with the weight as it is, [out_features, in_features].

    1. The weight is a plain tensor of the build's dtype. A table that the embedding reads too stays one tensor.
    2. With a quantisation, the matrices of layers are DequantizeLinear(values, scales); the head keeps 16 bits, as is
       usual: its errors go into the logits undamped. TensorRT multiplies by the quantised values.
    3. NVFP4's scales are themselves dequantised by the scale of the matrix, in float32; the weight is then a Cast away.
    """

    name = "lower_linears"
    op = linear

    def __init__(self, plan: BuildPlan) -> None:
        self._dtype = plan.dtype
        self._quantization = None if plan.device is None else plan.device.quantization

    def lower(self, network: Network, node: ir.Node) -> None:
        x, packed, bias = required_input(node, 0), required_input(node, 1), input_at(node, 2)
        if self._quantization is None or node.name == HEAD:
            weight = plain_matrix(network, packed, self._dtype)
        else:
            weight = _Dequantized(network, node, self._quantization, self._dtype).emit(packed)
        inputs = [x, weight] if bias is None else [x, weight, bias]
        output = like(node.outputs[0])
        replace_node(network.graph, node, [builtin_node("Gemm", inputs, output, str(node.name), transB=1)], [output])


class _Dequantized:
    """Emits the quantised weight of one node."""

    def __init__(self, network: Network, node: ir.Node, quantization: str, dtype: str) -> None:
        self._network, self._node = network, node
        self._format = quant_format(quantization)
        self._dtype = dtype

    def emit(self, packed: ir.Value) -> ir.Value:
        """The weight in the build's dtype; `packed` goes."""
        name = str(packed.name)
        sources = self._network.weights[name].sources
        node = self._node
        node.replace_input_with(1, None)
        if packed.uses():
            raise ValueError(f"node {node.name} shares its weight {name}, which is to be quantised, with another")
        self._network.remove_weight(name)

        def part(kind: Part) -> ir.Value:
            recipe = QuantizedRecipe(self._format.name, kind, self._dtype, sources)
            return self._network.add_weight(f"{name}.{kind}", recipe)

        # 2.
        values, scales = part("values"), part("scales")
        size = self._format.group_size
        groups = {"axis": 0} if size is None else {"axis": 1, "block_size": size}
        if not self._format.fp8_scales:
            return self._dequantize(values, scales, f"{name}.dequantized", self._dtype, **groups)
        # 3.
        exact = self._dequantize(scales, part("matrix_scale"), f"{name}.scales.dequantized", "float32")
        wide = self._dequantize(values, exact, f"{name}.float", "float32", **groups)
        weight = ir.Value(name=f"{name}.dequantized", shape=wide.shape, type=ir.TensorType(DTYPES[self._dtype]))
        self._append("Cast", [wide], weight, to=int(DTYPES[self._dtype].value))
        return weight

    def _dequantize(self, values: ir.Value, scales: ir.Value, name: str, dtype: str, **groups: int) -> ir.Value:
        output = ir.Value(name=name, shape=values.shape, type=ir.TensorType(DTYPES[dtype]))
        self._append("DequantizeLinear", [values, scales], output, **groups)
        return output

    def _append(self, op_type: str, inputs: list[ir.Value], output: ir.Value, **attributes: int) -> None:
        node = builtin_node(op_type, inputs, output, str(output.name), **attributes)
        self._network.graph.insert_before(self._node, node)
