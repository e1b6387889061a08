"""RmsNorm's device kernel on a GPU, against its reference: sizes of models, and the order in which a GPU adds up."""

import numpy as np
import pytest

from tests.plugins.device_ops import DTYPES
from tests.plugins.device_rms_norm_checks import check, random_case

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("features", [1, 77, 576, 896, 2880, 4096, 5120, 8192, 16383, 16384])
def test_sizes_of_models(dtype: str, has_residual: bool, features: int) -> None:
    x, weight, residual = random_case(dtype, 300, features)
    check(x, weight, residual if has_residual else None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_sums_of_squares_are_exact_it_has_the_references_bits(dtype: str) -> None:
    generator = np.random.default_rng(1)
    x, residual = generator.integers(-15, 16, (2, 1000, 4096)).astype(DTYPES[dtype])
    check(x, generator.standard_normal(4096).astype(x.dtype), residual, is_exact=True)
