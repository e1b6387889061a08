"""The lists of ops and layouts: in Python, in the native library's source, and the folders they name."""

import importlib
import re
from pathlib import Path

import precast.plugins
from precast.plugins import CUDA_OPS, SUPPORTED_LAYOUTS, SUPPORTED_OPS, TENSORRT_OPS
from precast.plugins.onnxruntime.kinds import KINDS

PLUGINS = Path(precast.plugins.__file__).parent


def test_every_op_folder_is_listed_and_every_listed_op_has_a_folder() -> None:
    schemas = [
        importlib.import_module(f"precast.plugins.{path.parent.name}.schema")
        for path in sorted(PLUGINS.glob("*/schema.py"))
    ]
    assert sorted(f"{schema.DOMAIN}.{schema.NAME}/{schema.VERSION}" for schema in schemas) == sorted(
        {*SUPPORTED_OPS, *CUDA_OPS}
    )


def test_the_native_library_lists_the_same() -> None:
    source = (PLUGINS / "cpu" / "registry.cpp").read_text()
    ids = re.findall(r'"([^"/]+/\d+)"', source)
    assert ids == [*SUPPORTED_OPS, *SUPPORTED_LAYOUTS]


def test_what_devices_run_has_kernels_for_them() -> None:
    for listed in (CUDA_OPS, TENSORRT_OPS):
        assert list(listed) == sorted(listed)
    assert {f"{kind.name}" for kind in KINDS} == {name.split(".")[-1].split("/")[0] for name in CUDA_OPS}
    assert set(TENSORRT_OPS) <= set(CUDA_OPS)
