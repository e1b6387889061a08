"""CUDA graphs of steps that decode: recorded once for a shape, replayed with other contents, padded without harm, and
given up where the device cannot."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from precast.plugins.device.driver import DeviceError
from precast.runtime.tensorrt.network import PlanNetwork
from tests.runtime.tensorrt.fake_cuda.machine import MACHINE
from tests.runtime.tensorrt.fake_cuda.types import CUresult
from tests.runtime.tensorrt.fake_engine import put_fakes_in_place
from tests.runtime.tensorrt.fake_packages.cuda.bindings import driver
from tests.runtime.tensorrt.fake_tensorrt.context import IExecutionContext
from tests.runtime.tensorrt.worlds import Array, FakeEngine, Logits, Piece, World, error, open_engine, open_world

PROMPTS = ([0, 17, 133, 42, 201, 7], [0, 5, 260, 260, 99, 3, 77], [7, 22, 4], [301, 8, 15, 16, 23])
CLOSE = 0.004


@pytest.fixture(scope="module")
def expected(reference: Callable[..., Logits]) -> Logits:
    return reference("float16", "float16")


def count(name: str) -> int:
    return sum(call == name for call, *_ in driver.calls)


def prefill(world: World, prompts: Sequence[Sequence[int]]) -> None:
    """Everything but the last token of each; sequence i begins with block 4 i."""
    for i, prompt in enumerate(prompts):
        world.run(world.step([world.prompt(prompt[:-1], 4 * i)]))


def decode(world: World, prompts: Sequence[Sequence[int]], sequences: Sequence[int]) -> Array:
    """The logits of the last tokens, of these sequences in this order, in one step."""
    last = [world.prompt(prompts[i][-1:], 4 * i, start=len(prompts[i]) - 1) for i in sequences]
    return world.run(world.step(last)).logits


def rows(expected: Logits, prompts: Sequence[Sequence[int]], sequences: Sequence[int]) -> Array:
    return np.stack([expected(prompts[i])[-1] for i in sequences])


def test_a_graph_is_recorded_once_and_replayed_with_other_contents(world: World, expected: Logits) -> None:
    prefill(world, PROMPTS)
    for number, sequences in enumerate([(0,), (1,), (2,), (1,), (3,)]):
        assert error(decode(world, PROMPTS, sequences), rows(expected, PROMPTS, sequences)) < CLOSE
        assert (count("cuGraphInstantiate"), count("cuGraphLaunch")) == (1, number)
        assert count("cuGraphDestroy") == 1  # what was recorded, of which there is a copy


def test_a_graph_is_replayed_beside_a_step_in_flight(world: World, expected: Logits) -> None:
    prefill(world, PROMPTS)
    decode(world, PROMPTS, (0,))
    steps = [world.step([world.prompt(PROMPTS[i][-1:], 4 * i, start=len(PROMPTS[i]) - 1)]) for i in (1, 2, 3, 0)]
    world.session.enqueue(steps[0])
    for step, oldest, i in zip([*steps[1:], None], steps, (1, 2, 3, 0), strict=True):
        if step is not None:
            world.session.enqueue(step)
        assert error(world.collect(oldest).logits, rows(expected, PROMPTS, (i,))) < CLOSE
    assert count("cuGraphLaunch") == 4


@pytest.mark.parametrize("max_batch_size", [1, 2, 3, 4])
def test_every_size_of_a_batch(max_batch_size: int, fake_engine: FakeEngine, expected: Logits) -> None:
    """Sizes are padded to a power of two, and to no more than the limit; a graph of each padded size."""
    with open_world(fake_engine("float16"), max_batch_size=max_batch_size) as world:
        prefill(world, PROMPTS)
        for _ in range(2):
            for size in range(1, max_batch_size + 1):
                sequences = tuple(range(4))[-size:]
                assert error(decode(world, PROMPTS, sequences), rows(expected, PROMPTS, sequences)) < CLOSE
        assert count("cuGraphInstantiate") == {1: 1, 2: 2, 3: 3, 4: 3}[max_batch_size]
        assert max(shape for name, shape in _shapes() if name == "context_lengths") == (max_batch_size,)


def _shapes() -> list[tuple[Any, ...]]:
    """Names and sizes of all input shapes that were set."""
    return [tuple(arguments) for call, *arguments in driver.calls if call == "set_input_shape"]


def test_padding_writes_the_scratch_block_and_nothing_else(world: World, expected: Logits) -> None:
    prompts = PROMPTS[:3]
    prefill(world, prompts)
    before = world.pools()
    logits = decode(world, prompts, (0, 1, 2))
    assert ("context_lengths", (4,)) in _shapes()
    assert error(logits, rows(expected, prompts, (0, 1, 2))) < CLOSE
    assert len(before) == 2
    for old, new in zip(before, world.pools(), strict=True):
        changed = np.flatnonzero((old != new).any(axis=1)).tolist()
        assert changed == [0, 4, 8, world.opened.num_blocks]
        for block, prompt in zip(changed, prompts, strict=False):
            assert _positions(old[block], new[block]) == [len(prompt) - 1]
        assert _positions(old[-1], new[-1]) == [0]


def _positions(old: Array, new: Array) -> list[int]:
    """The places of a block that differ: K of each of 16 tokens, then V of each, or both of each head."""
    cells = (old != new).reshape(-1, 16, 32).any(axis=(0, 2))  # a row of a head is 16 numbers of 16 bits
    return [int(place) for place in np.flatnonzero(cells)]


def test_a_padded_step_leaves_no_row_of_its_own(world: World, expected: Logits) -> None:
    """A step of four is replayed by three whose fourth place still holds the sequence of before."""
    prefill(world, PROMPTS)
    decode(world, PROMPTS, (0, 1, 2, 3))
    before = world.pools()
    assert error(decode(world, PROMPTS, (2, 0, 1)), rows(expected, PROMPTS, (2, 0, 1))) < CLOSE
    for old, new in zip(before, world.pools(), strict=True):
        assert np.array_equal(old[12], new[12])


def test_a_graph_for_each_width_of_the_table(fake_engine: FakeEngine, expected: Logits) -> None:
    """Tables are padded to 8 columns, 16 and so on: a longer sequence is another shape, and still right."""
    long = [(7 * i + i * i // 3) % 320 for i in range(138)]
    long[:] = [token + 2 if token < 2 else token for token in long]
    engine = fake_engine("float16", max_seq_len=256, max_num_tokens=160)
    with open_world(engine, max_num_tokens=160) as world:
        world.run(world.step([world.prompt(long[:126], 0)]))
        for end in (127, 128, 129, 130, 138):
            step = world.step([world.prompt(long[end - 1 : end], 0, start=end - 1)])
            if end == 138:
                world.run(world.step([world.prompt(long[130:137], 0, start=130)]))
            assert step.block_tables[0].shape == (1, 8 if end <= 128 else 9)
            assert error(world.run(step).logits, expected(long[:end])[-1:]) < CLOSE
        assert count("cuGraphInstantiate") == 2
        assert {shape for name, shape in _shapes() if name == "block_tables.0"} == {(1, 8), (1, 16)}


def test_the_widest_table_is_the_longest_sequence(fake_engine: FakeEngine, expected: Logits) -> None:
    """Of an engine that takes 4 blocks of a sequence, also where the table has a column more."""
    with open_world(fake_engine("float16")) as world:
        tokens = [(3 * i) % 300 + 2 for i in range(64)]
        world.run(world.step([world.prompt(tokens[:32], 0)]))
        world.run(world.step([world.prompt(tokens[32:63], 0, start=32)]))
        last = Piece(tokens[63:], 63, world.blocks(0, 1, 2, 3, 4), {0: -1})
        assert error(world.run(world.step([last])).logits, expected(tokens)[-1:]) < CLOSE
        assert {shape for name, shape in _shapes() if name == "block_tables.0"} == {(1, 4)}


def test_steps_with_prompts_are_never_recorded(world: World, expected: Logits) -> None:
    prefill(world, PROMPTS[:2])
    for _ in range(2):
        mixed = [
            world.prompt(PROMPTS[0][-1:], 0, start=len(PROMPTS[0]) - 1),
            world.prompt(PROMPTS[2], 8),
            world.prompt(PROMPTS[1][-1:], 4, start=len(PROMPTS[1]) - 1),
        ]
        logits = world.run(world.step(mixed)).logits
        assert error(logits, rows(expected, PROMPTS, (0, 2, 1))) < CLOSE
    assert count("cuStreamBeginCapture") == count("cuGraphLaunch") == 0


def test_graphs_after_other_shapes_and_prompts(world: World, expected: Logits) -> None:
    """What a graph reads is set again each time, whatever ran in between."""
    prefill(world, PROMPTS)
    for sequences in ((0,), (1, 2), (3,), (0, 1, 2), (2, 1), (0,)):
        assert error(decode(world, PROMPTS, sequences), rows(expected, PROMPTS, sequences)) < CLOSE
        prompt = world.run(world.step([world.prompt(PROMPTS[3][:4], 16)])).logits
        assert error(prompt, expected(PROMPTS[3][:4])[-1:]) < CLOSE
    assert (count("cuGraphInstantiate"), count("cuGraphLaunch")) == (3, 3)


def test_graphs_go_before_the_plan_that_they_run(fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """They launch kernels that the plan has loaded, and the fake plan does not notice."""
    destroyed: list[int] = []
    close = PlanNetwork.close

    def close_and_look(network: PlanNetwork) -> None:
        destroyed.append(count("cuGraphExecDestroy"))
        close(network)

    monkeypatch.setattr(PlanNetwork, "close", close_and_look)
    with open_world(fake_engine("float16")) as world:
        prefill(world, PROMPTS)
        decode(world, PROMPTS, (0,))
        decode(world, PROMPTS, (1, 2))
    assert destroyed == [2]


def test_graphs_are_left_to_a_device_that_has_failed(fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No call does anything any more: closing must end all the same, without an error of its own."""
    put_fakes_in_place(monkeypatch)
    world = World(*open_engine(fake_engine("float16")))
    prefill(world, PROMPTS)
    decode(world, PROMPTS, (0,))
    assert count("cuGraphInstantiate") == 1
    MACHINE.devices[0].failure = CUresult.CUDA_ERROR_LAUNCH_FAILED
    world.session.close()
    assert driver.misuse == []
    driver.reset()


# ------------------------------------------------------------------------------------------------------- without graphs

ONE_LINE = "CUDA graphs are off, and decoding is slower: "


def check_without_graphs(world: World, expected: Logits, capfd: pytest.CaptureFixture[str], reason: str) -> None:
    """Steps are right all the same, one line says why, and nobody tries again."""
    prefill(world, PROMPTS)
    for sequences in ((0,), (1,), (0, 1, 2), (3, 2)):
        assert error(decode(world, PROMPTS, sequences), rows(expected, PROMPTS, sequences)) < CLOSE
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(ONE_LINE + reason)
    assert count("cuGraphLaunch") == 0
    assert count("cuStreamBeginCapture") <= 1


@pytest.mark.parametrize(
    ("call", "number", "reason"),
    [
        ("cuStreamBeginCapture", 1, "cuStreamBeginCapture: "),
        ("cuGraphInstantiate", 1, "cuGraphInstantiate: "),
        ("execute_async_v3", 6, "TensorRT cannot run "),  # four prompts, the step, and its recording
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


def test_a_recording_that_becomes_invalid(
    world: World, expected: Logits, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = driver.cuStreamBeginCapture

    def begin_in_vain(*arguments: Any) -> Any:
        answer = begin(*arguments)
        for stream in MACHINE.streams():
            if stream.capture is not None:
                stream.capture.is_valid = False
        return answer

    monkeypatch.setattr(driver, "cuStreamBeginCapture", begin_in_vain)
    check_without_graphs(world, expected, capfd, "cuStreamEndCapture: ")


def test_a_plan_that_says_that_it_cannot_be_recorded(
    fake_engine: FakeEngine, expected: Logits, capfd: pytest.CaptureFixture[str]
) -> None:
    with open_world(fake_engine("float16"), {"is_stream_capturable": False}) as world:
        check_without_graphs(world, expected, capfd, "TensorRT cannot record this plan")
        assert count("cuStreamBeginCapture") == 0


# ------------------------------------------------------------------------------------------------ plugins that fail

FAILURE = "PagedAttention: cuLaunchKernel: CUDA_ERROR_INVALID_VALUE"


def fail_unknown_to_tensorrt(world: World, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The plugins of the step after `number` others say what went wrong, and TensorRT says that all is well."""
    network: Any = world.opened.network
    execute, calls = IExecutionContext.execute_async_v3, list[int]()

    def execute_and_fail(context: IExecutionContext, stream: Any) -> bool:
        if len(calls) == number:
            network._plugin_errors.append(FAILURE)
        calls.append(1)
        return execute(context, stream)

    monkeypatch.setattr(IExecutionContext, "execute_async_v3", execute_and_fail)


def test_a_step_whose_plugin_failed_is_not_taken_for_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_unknown_to_tensorrt(world, monkeypatch, 0)
    with pytest.raises(DeviceError, match=f"TensorRT cannot run .*model.plan: {FAILURE}$"):
        world.session.enqueue(world.step([world.prompt(PROMPTS[0], 0)]))


def test_a_recording_in_which_a_plugin_failed_is_none(
    world: World, expected: Logits, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_unknown_to_tensorrt(world, monkeypatch, len(PROMPTS) + 1)  # the prompts, and the step
    check_without_graphs(world, expected, capfd, "TensorRT cannot run ")
