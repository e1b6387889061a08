"""Graph dumps: the network after a pass, as text to read and compare and as an ONNX model to look at in a viewer."""

from pathlib import Path

from precast.builder.network.network import Network
from precast.builder.network.onnx_model import onnx_bytes
from precast.builder.network.text import network_text


def dump_network(network: Network, directory: Path, stem: str) -> None:
    """Write `stem`.txt and `stem`.onnx into `directory`, which is made if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{stem}.txt").write_text(network_text(network), encoding="utf-8")
    (directory / f"{stem}.onnx").write_bytes(onnx_bytes(network, weight_offsets=None))
