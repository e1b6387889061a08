"""Which backend `backend` and `device` mean together."""

from __future__ import annotations

BACKENDS = ("onnxruntime", "tensorrt")
DEVICES = ("cpu", "cuda")
GPU_BACKENDS = ("onnxruntime-cuda", "tensorrt")
"""As manifests name them."""
_FOREIGN_BACKENDS = ("pytorch", "_autodeploy")


def check_backend(backend: str | None, device: str | None = None) -> None:
    """None picks onnxruntime on the CPU where something is built, and what an engine was built for where it is loaded.

    Raises:
        ValueError: one is unknown, or another project's, or they do not go together; the message says what Precast has.
    """
    if device not in (None, *DEVICES):
        raise ValueError(f"unknown device {device!r}: Precast has {' and '.join(repr(name) for name in DEVICES)}")
    if backend == "tensorrt" and device == "cpu":
        raise ValueError("backend 'tensorrt' runs on NVIDIA GPUs, and device='cpu' was asked for: leave one out")
    if backend is None or backend in BACKENDS:
        return
    ours = " or ".join(repr(name) for name in BACKENDS)
    if backend in _FOREIGN_BACKENDS:
        raise ValueError(
            f"backend={backend!r} runs models through PyTorch, which Precast never needs: leave backend out, or choose "
            f"{ours}"
        )
    raise ValueError(f"unknown backend {backend!r}: Precast has {ours}")


def backend_to_build(backend: str | None, device: str | None) -> str:
    """The backend as the builder and manifests name it. Raises ValueError as :func:`check_backend`."""
    check_backend(backend, device)
    if backend == "tensorrt":
        return backend
    return "onnxruntime-cuda" if device == "cuda" else "onnxruntime"


def is_chosen(built: str, backend: str | None, device: str | None) -> bool:
    """Whether an engine that was built for the backend `built` is what was asked for."""
    on = "cpu" if built == "onnxruntime" else "cuda"
    name = "tensorrt" if built == "tensorrt" else "onnxruntime"
    return backend in (None, name) and device in (None, on)


def describe_choice(backend: str | None, device: str | None) -> str:
    """What was asked for, as arguments of the command line, e.g. "--backend onnxruntime --device cuda"."""
    given = (("--backend", backend), ("--device", device))
    return " ".join(f"{name} {value}" for name, value in given if value is not None)
