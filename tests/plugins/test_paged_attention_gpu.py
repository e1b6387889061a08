"""PagedAttention's device kernels on a GPU, against its reference: shapes that the interpreter has no time for."""

import dataclasses

import numpy as np
import pytest

from precast.plugins.paged_attention.schema import DEVICE_KV_LAYOUTS
from tests.plugins.device_paged_attention_checks import assert_same, attributes
from tests.plugins.device_paged_attention_world import Sequence, World

pytestmark = pytest.mark.gpu

BF16, F16 = DEVICE_KV_LAYOUTS
DECODE = [Sequence(1), Sequence(700), Sequence(513), Sequence(64)]
MIXED = [Sequence(300, 1), Sequence(200, 200), Sequence(900, 77), Sequence(64, 64), Sequence(33, 2)]


@pytest.mark.parametrize("layout", DEVICE_KV_LAYOUTS)
@pytest.mark.parametrize("sequences", [DECODE, MIXED], ids=["decode", "mixed"])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(32, 8, 128), (32, 4, 64), (16, 16, 80), (16, 1, 256)])
def test_shapes_of_models(layout: str, sequences: list[Sequence], heads: int, kv_heads: int, dim: int) -> None:
    assert_same(World(attributes(layout, heads, kv_heads, dim, 64), sequences, rotary_dim=dim))


@pytest.mark.parametrize("window", [0, 100, 4096])
@pytest.mark.parametrize("softcap", [0.0, 30.0])
def test_windows_soft_capping_and_sinks(window: int, softcap: float) -> None:
    op = dataclasses.replace(attributes(BF16, 16, 4, 128, 32, window=window), logit_softcap=softcap)
    sinks = np.linspace(-2, 2, 16).astype(np.float32)
    assert_same(World(op, MIXED, 128, 1, has_norm=True, sinks=sinks))


def test_a_long_context() -> None:
    """More spans than one program takes."""
    assert_same(World(attributes(F16, 8, 2, 64, 64), [Sequence(40_000), Sequence(20_000, 3)], rotary_dim=64))
