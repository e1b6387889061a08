"""Changes to a checkpoint's files, for tests of what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of the JSON object in `path`; a value of `...` removes the key."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def edit_safetensors(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Load the PyTorch tensors in `path`, let `change` edit the dict, save it."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def write_safetensors(path: Path, header: Any, data: bytes = b"", *, header_bytes: int | None = None) -> Path:
    """A file of a header (bytes, or JSON of anything else) and data, however wrong. Returns `path`."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if header_bytes is None else header_bytes).to_bytes(8, "little") + text + data)
    return path
