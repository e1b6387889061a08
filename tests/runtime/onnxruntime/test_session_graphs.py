"""What tests/runtime/tensorrt/test_session_graphs.py says of CUDA graphs, with ONNX Runtime."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.runtime.onnxruntime.cpu_provider import RUN, LazyNetwork
from tests.runtime.tensorrt import test_session_graphs as graphs
from tests.runtime.tensorrt.fake_cuda.types import CUresult
from tests.runtime.tensorrt.fake_packages.cuda.bindings import driver
from tests.runtime.tensorrt.test_session_graphs import (
    CLOSE,
    ONE_LINE,
    PROMPTS,
    count,
    decode,
    prefill,
    rows,
    test_a_graph_is_recorded_once_and_replayed_with_other_contents,
    test_a_graph_is_replayed_beside_a_step_in_flight,
    test_a_padded_step_leaves_no_row_of_its_own,
    test_every_size_of_a_batch,
    test_graphs_are_left_to_a_device_that_has_failed,
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
    "test_every_size_of_a_batch",
    "test_graphs_are_left_to_a_device_that_has_failed",
    "test_padding_writes_the_scratch_block_and_nothing_else",
    "test_steps_with_prompts_are_never_recorded",
]


def test_a_graph_for_each_width_of_the_table(fake_engine: FakeEngine, expected: Logits) -> None:
    """As that of TensorRT, after the rehearsal, which has the widest table."""
    shapes = graphs._shapes
    rehearsed: list[int] = []

    def behind_the_rehearsal() -> list[tuple[Any, ...]]:
        return [each for each in shapes()[rehearsed[0] :] if each[0] == "block_tables.0"]

    def open_and_count(*arguments: Any, **limits: Any) -> Any:
        world = open_world(*arguments, **limits)

        class Counted:
            def __enter__(self) -> Any:
                opened = world.__enter__()
                rehearsed.append(len(shapes()))
                return opened

            def __exit__(self, *error: Any) -> Any:
                return world.__exit__(*error)

        return Counted()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "_shapes", behind_the_rehearsal)
        patch.setattr(graphs, "open_world", open_and_count)
        graphs.test_a_graph_for_each_width_of_the_table(fake_engine, expected)


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


def test_one_recording_that_fails_is_tried_again(
    fake_engine: FakeEngine, expected: Logits, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime's allocator may have had to grow."""
    failing = {"call": "cuStreamBeginCapture", "number": 1, "status": 801}
    with open_world(fake_engine("float16"), {"fail": failing}) as world:
        prefill(world, PROMPTS)
        for number in range(3):
            assert error(decode(world, PROMPTS, (0,)), rows(expected, PROMPTS, (0,))) < CLOSE
            assert count("cuGraphInstantiate") == min(number, 1)
        assert count("cuGraphLaunch") == 1
    assert capfd.readouterr().err == ""


def test_the_third_recording_that_fails_is_the_last(
    fake_engine: FakeEngine, expected: Logits, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_world(fake_engine("float16")) as world:
        monkeypatch.setattr(driver, "cuGraphInstantiate", lambda *_: (CUresult.CUDA_ERROR_NOT_SUPPORTED, None))
        prefill(world, PROMPTS)
        for _ in range(5):
            assert error(decode(world, PROMPTS, (0,)), rows(expected, PROMPTS, (0,))) < CLOSE
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith(f"{ONE_LINE}cuGraphInstantiate: ")
        assert count("cuStreamBeginCapture") == 3
        assert count("cuGraphDestroy") == 3


def test_a_run_that_fails_while_it_is_recorded(
    fake_engine: FakeEngine, expected: Logits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was recorded until then is destroyed, and the step has run before."""
    with open_world(fake_engine("float16")) as world:
        prefill(world, PROMPTS)
        number = count(RUN) + 2  # the step, and its recording
    forgotten: list[int] = []
    with open_world(fake_engine("float16"), {"fail": {"call": RUN, "number": number, "status": 801}}) as world:
        monkeypatch.setattr(world.opened.network, "_forget_error", lambda: forgotten.append(count(RUN)))
        prefill(world, PROMPTS)
        assert error(decode(world, PROMPTS, (0,)), rows(expected, PROMPTS, (0,))) < CLOSE
        assert (count("cuGraphInstantiate"), count("cuGraphDestroy")) == (0, 1)
        assert forgotten == [number]  # or ONNX Runtime would find CUDA's error in the next run
        assert error(decode(world, PROMPTS, (1,)), rows(expected, PROMPTS, (1,))) < CLOSE
        assert count("cuGraphInstantiate") == 1


def test_what_the_rehearsal_recorded_is_forgotten(fake_engine: FakeEngine, reference: Callable[..., Logits]) -> None:
    """Where the largest step only decodes, its graph has the addresses of pools that are gone."""
    wanted = reference("float16", "float16")
    with open_world(fake_engine("float16"), max_num_tokens=4) as world:
        assert (count("cuGraphInstantiate"), count("cuGraphExecDestroy")) == (1, 1)
        prompts = [prompt[:3] for prompt in PROMPTS]
        prefill(world, prompts)
        logits = decode(world, prompts, (0, 1, 2, 3))
        assert error(logits, rows(wanted, prompts, (0, 1, 2, 3))) < CLOSE
