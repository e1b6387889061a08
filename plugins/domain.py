"""The ONNX operator domain of the custom ops."""

DOMAIN = "ai.precast"
