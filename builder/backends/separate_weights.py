"""Networks whose weights are inputs, so that others can take their place."""

import hashlib

import onnx


def weights_as_inputs(model_bytes: bytes) -> bytes:
    """The same graph with its initialisers as inputs, behind the others."""
    model = onnx.ModelProto.FromString(model_bytes)
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    del model.graph.initializer[:]
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def network_sha256(model_bytes: bytes) -> str:
    """Of the graph with its weights as inputs."""
    model = onnx.ModelProto.FromString(weights_as_inputs(model_bytes))
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()
