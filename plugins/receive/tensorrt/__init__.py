"""Receive as a plugin of TensorRT."""
