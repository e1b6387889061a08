"""GatedActivation's device kernel on a GPU, against its reference: every gate, with the GPU's exp and quotient."""

import pytest

from tests.plugins.device_gated_activation_checks import check, every_gate, random_case
from tests.plugins.device_ops import DTYPES

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_gate(dtype: str) -> None:
    check(every_gate(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "features"), [(1, 1), (1, 14336), (1000, 11008), (300, 4864), (7, 1_000_001)])
def test_sizes_of_models(dtype: str, rows: int, features: int) -> None:
    check(random_case(dtype, rows, features))
