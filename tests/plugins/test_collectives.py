"""AllReduce, AllGather, Send and Receive: attributes and references."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precast.plugins.all_gather.reference import all_gather
from precast.plugins.all_gather.schema import AllGatherAttributes
from precast.plugins.all_reduce.reference import all_reduce
from precast.plugins.all_reduce.schema import AllReduceAttributes
from precast.plugins.receive.reference import receive
from precast.plugins.receive.schema import ReceiveAttributes
from precast.plugins.send.reference import send
from tests.plugins.op_session import run_op


def test_sums_are_in_the_order_of_ranks() -> None:
    values = [np.full((1, 1), value, np.float32) for value in (1e8, 1.0, -1e8, 1.0)]
    assert all_reduce(values, AllReduceAttributes(4)) == 1.0  # 1e8 + 1 is 1e8
    assert all_reduce(values[::-1], AllReduceAttributes(4)) == 0.0
    assert values[0] == 1e8


@given(num_ranks=st.integers(2, 5), rows=st.integers(0, 3), features=st.integers(1, 9), seed=st.integers(0, 2**16))
def test_a_row_is_summed_as_alone(num_ranks: int, rows: int, features: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((num_ranks, rows, features)).astype(np.float32)
    attributes = AllReduceAttributes(num_ranks)
    together = all_reduce(list(x), attributes)
    assert together.dtype == np.float32
    for row in range(rows):
        np.testing.assert_array_equal(together[row], all_reduce(list(x[:, row : row + 1]), attributes)[0])


def test_columns_lie_side_by_side_on_the_root_and_padding_is_dropped() -> None:
    x = [np.arange(6, dtype=np.float32).reshape(2, 3) + 10 * rank for rank in range(3)]
    outputs = all_gather(x, AllGatherAttributes(num_ranks=3, num_features=7, root=1))
    assert [output.shape for output in outputs] == [(0, 7), (2, 7), (0, 7)]
    assert outputs[1].tolist() == [[0, 1, 2, 10, 11, 12, 20], [3, 4, 5, 13, 14, 15, 23]]


def test_without_a_root_every_rank_gets_the_rows() -> None:
    x = [np.arange(6, dtype=np.float32).reshape(2, 3) + 10 * rank for rank in range(2)]
    outputs = all_gather(x, AllGatherAttributes(num_ranks=2, num_features=4, root=-1))
    assert [output.tolist() for output in outputs] == [[[0, 1, 2, 10], [3, 4, 5, 13]]] * 2


def test_what_is_sent_is_received() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert send(x).tolist() == [2]
    token_ids = np.zeros(2, np.int32)
    np.testing.assert_array_equal(receive(token_ids, x, ReceiveAttributes(3)), x)
    with pytest.raises(ValueError, match=r"expected \[2, 4\], the stage before sent \[2, 3\]"):
        receive(token_ids, x, ReceiveAttributes(4))


def test_inputs_that_do_not_fit_each_other() -> None:
    one, two = np.zeros((1, 3), np.float32), np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"rank 1 has \[2, 3\], rank 0 has \[1, 3\]"):
        all_reduce([one, two], AllReduceAttributes(2))
    with pytest.raises(ValueError, match="1 inputs for num_ranks 2"):
        all_reduce([one], AllReduceAttributes(2))
    with pytest.raises(ValueError, match="1 inputs for num_ranks 2"):
        all_gather([one], AllGatherAttributes(2, 3, 0))
    with pytest.raises(ValueError, match="different shapes"):
        all_gather([one, two], AllGatherAttributes(2, 3, 0))
    with pytest.raises(ValueError, match="6 columns for num_features 7"):
        all_gather([one, one], AllGatherAttributes(2, 7, 0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AllReduceAttributes(1), "num_ranks is 1; it must be at least 2"),
        (lambda: AllGatherAttributes(1, 3, 0), "num_ranks is 1 and num_features 3"),
        (lambda: AllGatherAttributes(2, 0, 0), "num_ranks is 2 and num_features 0"),
        (lambda: AllGatherAttributes(2, 3, 2), "root is 2; it must be from 0 to 1, or -1 for all"),
        (lambda: AllGatherAttributes(2, 3, -2), "root is -2; it must be from 0 to 1, or -1 for all"),
        (lambda: ReceiveAttributes(0), "num_features is 0; it must be at least 1"),
    ],
)
def test_attributes_that_make_no_sense(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("op", "x", "attributes"),
    [
        ("AllReduce", np.zeros((1, 2), np.float32), {"num_ranks": 2}),
        ("AllGather", np.zeros((1, 2), np.float32), {"num_ranks": 2, "num_features": 4, "root": 0}),
        ("Receive", np.zeros(1, np.int32), {"num_features": 2}),
    ],
)
def test_a_session_without_other_ranks_refuses_the_node(
    monkeypatch: pytest.MonkeyPatch, op: str, x: np.ndarray, attributes: dict[str, object]
) -> None:
    with pytest.raises(Exception, match=f"ai.precast.{op}.*: it meets other ranks, and this session runs alone"):
        run_op(monkeypatch, "portable", op, [x], attributes)
