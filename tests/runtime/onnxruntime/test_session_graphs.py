"""What tests/runtime/tensorrt/test_session_graphs.py says of CUDA graphs, with ONNX Runtime."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.runtime.onnxruntime.cpu_provider import RUN, LazyNetwork
from tests.runtime.tensorrt import test_session_graphs as graphs
from tests.runtime.tensorrt.test_session_graphs import (
    PROMPTS,
    check_without_graphs,
    count,
    decode,
    prefill,
    test_a_graph_is_recorded_once_and_replayed_with_other_contents,
    test_a_graph_is_replayed_beside_a_step_in_flight,
    test_a_padded_step_leaves_no_row_of_its_own,
    test_a_recording_that_becomes_invalid,
    test_every_size_of_a_batch,
    test_padding_writes_the_scratch_block_and_nothing_else,
    test_steps_with_prompts_are_never_recorded,
)
from tests.runtime.tensorrt.test_session_graphs import expected as expected
from tests.runtime.tensorrt.worlds import FakeEngine, Logits, error, open_world

pytestmark = pytest.mark.usefixtures("cpu_provider")

__all__ = [
    "test_a_graph_is_recorded_once_and_replayed_with_other_contents",
    "test_a_graph_is_replayed_beside_a_step_in_flight",
    "test_a_padded_step_leaves_no_row_of_its_own",
    "test_a_recording_that_becomes_invalid",
    "test_every_size_of_a_batch",
    "test_padding_writes_the_scratch_block_and_nothing_else",
    "test_steps_with_prompts_are_never_recorded",
]


def test_a_graph_for_each_width_of_the_table(fake_engine: FakeEngine, expected: Logits) -> None:
    """As that of TensorRT, after the rehearsal with the widest table."""
    widths: list[Any] = []
    shapes = graphs._shapes

    def behind_the_rehearsal() -> list[tuple[Any, ...]]:
        widths[:] = [shape for name, shape in shapes() if name == "block_tables.0"]
        assert widths[0] == (4, 16)
        return [("block_tables.0", shape) for shape in widths[1:]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "_shapes", behind_the_rehearsal)
        graphs.test_a_graph_for_each_width_of_the_table(fake_engine, expected)
    assert len(widths) > 1


def test_graphs_go_before_the_network_that_they_run(fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    destroyed: list[int] = []
    close = LazyNetwork.close

    def close_and_look(network: LazyNetwork) -> None:
        destroyed.append(count("cuGraphExecDestroy"))
        close(network)

    monkeypatch.setattr(LazyNetwork, "close", close_and_look)
    with open_world(fake_engine("float16")) as world:
        prefill(world, PROMPTS)
        decode(world, PROMPTS, (0,))
        decode(world, PROMPTS, (1, 2))
    assert destroyed == [2]


@pytest.mark.parametrize(
    ("call", "number", "reason"),
    [
        ("cuStreamBeginCapture", 1, "cuStreamBeginCapture: "),
        ("cuGraphInstantiate", 1, "cuGraphInstantiate: "),
        (RUN, 7, "ONNX Runtime cannot run "),  # the rehearsal, four prompts, the step, and its recording
    ],
)
def test_a_step_that_cannot_be_recorded(
    call: str,
    number: int,
    reason: str,
    fake_engine: FakeEngine,
    expected: Logits,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with open_world(fake_engine("float16"), {"fail": {"call": call, "number": number, "status": 801}}) as world:
        check_without_graphs(world, expected, capfd, reason)


def test_what_the_rehearsal_recorded_is_forgotten(fake_engine: FakeEngine, reference: Callable[..., Logits]) -> None:
    """Where the largest step only decodes, its graph has the addresses of pools that are gone."""
    wanted = reference("float16", "float16")
    with open_world(fake_engine("float16"), max_num_tokens=4) as world:
        assert (count("cuGraphInstantiate"), count("cuGraphExecDestroy")) == (1, 1)
        prompts = [prompt[:3] for prompt in PROMPTS]
        prefill(world, prompts)
        logits = decode(world, prompts, (0, 1, 2, 3))
        assert error(logits, graphs.rows(wanted, prompts, (0, 1, 2, 3))) < graphs.CLOSE
