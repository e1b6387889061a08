"""Steps of a session: what is called and in which order, what lies in its buffers until when, and where tokens come
from. Nothing that the fake device is asked for happens before somebody waits: whoever reuses a buffer too early, or
reads one too soon, gets wrong bytes."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from precast.runtime.device.session import SLOTS
from tests.runtime.tensorrt.fake_cuda.machine import MACHINE
from tests.runtime.tensorrt.fake_engine import SCRATCH_BYTES
from tests.runtime.tensorrt.fake_packages.cuda.bindings import driver
from tests.runtime.tensorrt.worlds import TOKEN, Array, Chosen, FakeEngine, Logits, Piece, World, error, open_world

A = [0, 17, 133, 42, 201, 5, 260, 260, 99, 3, 77, 301, 8, 15, 22, 31, 4, 9]
B = [0, 5, 260, 260, 99, 3, 77, 301]
CLOSE = 0.004
"""Between steps of different shapes, which NumPy sums in different orders."""
SETTING = ("set_input_shape", "is_stream_capturable")
"""What TensorRT is told; nothing runs for it."""


@pytest.fixture(scope="module")
def expected(reference: Callable[..., Logits]) -> Logits:
    return reference("float16", "float16")


def calls_of(do: Callable[[], object]) -> list[str]:
    """The driver's and TensorRT's functions that `do` calls, in order."""
    first = len(driver.calls)
    do()
    return [name for name, *_ in driver.calls[first:] if name not in SETTING]


# --------------------------------------------------------------------------------------------------------------- calls

COPIES = ["cuMemcpyDtoDAsync", "cuMemcpyDtoHAsync"]
RECORDING = [
    "cuStreamBeginCapture",
    "execute_async_v3",
    "cuStreamEndCapture",
    "cuGraphInstantiate",
    "cuGraphDestroy",
]


def test_a_step_calls_the_device_in_this_order_and_never_waits(world: World) -> None:
    prompt = world.step([world.prompt(A[:5], 0)])
    first = world.step([world.prompt([A[5]], 0, start=5, want=TOKEN)])
    second = world.step([world.prompt([A[6]], 0, start=6)])
    third = world.step([world.prompt([A[7]], 0, start=7, want=3)])
    enqueue = world.session.enqueue
    whole_row = [*COPIES, "cuMemcpyDtoHAsync", "cuEventRecord"]
    chosen = [*COPIES, "cuEventRecord"]
    assert calls_of(lambda: enqueue(prompt)) == ["cuMemcpyHtoDAsync", "execute_async_v3", *whole_row]
    assert calls_of(lambda: enqueue(first)) == ["cuMemcpyHtoDAsync", "execute_async_v3", *RECORDING, *chosen]
    assert calls_of(lambda: world.collect(prompt)) == ["cuEventSynchronize"]
    assert calls_of(lambda: enqueue(second)) == ["cuMemcpyHtoDAsync", "cuGraphLaunch", *whole_row]
    assert calls_of(lambda: world.collect(first)) == ["cuEventSynchronize"]
    assert calls_of(lambda: enqueue(third)) == ["cuMemcpyHtoDAsync", "cuGraphLaunch", *chosen]
    world.collect(second)
    world.collect(third)


def test_nothing_is_allocated_when_it_is_open(world: World) -> None:
    opened = len(driver.calls)
    for count in (1, 2, 3, 4, 3):
        world.run(world.step([world.prompt(A[:4], 4 * i) for i in range(count)]))
        world.run(world.step([world.prompt([A[4]], 4 * i, start=4) for i in range(count)]))
    called = {name for name, *_ in driver.calls[opened:]}
    assert "cuGraphLaunch" in called
    assert not called & {
        "cuMemAlloc",
        "cuMemHostAlloc",
        "cuMemFree",
        "cuMemFreeHost",
        "cuEventCreate",
        "cuStreamCreate",
    }


def test_whether_a_step_is_done_is_asked_without_waiting(world: World) -> None:
    driver.settings.queries_until_done = 2
    step = world.step([world.prompt(A[:5], 0)])
    world.session.enqueue(step)
    asked: list[bool] = []
    calls = calls_of(lambda: asked.extend(world.session.is_done(step.id) for _ in range(3)))
    assert asked == [False, False, True]
    assert calls == ["cuEventQuery"] * 3
    world.collect(step)


def test_steps_in_flight_are_as_many_as_it_says_and_are_collected_in_order(world: World) -> None:
    assert world.session.max_in_flight == SLOTS == 2
    steps = [world.step([world.prompt(A[:3], 4 * i)]) for i in range(3)]
    world.session.enqueue(steps[0])
    world.session.enqueue(steps[1])
    with pytest.raises(ValueError, match="step 3 is one more than the 2 that may be in flight"):
        world.session.enqueue(steps[2])
    for call in (world.session.collect, world.session.is_done):
        with pytest.raises(ValueError, match="step 2 is not the oldest in flight, which is 1"):
            call(2)
    world.collect(steps[0])
    world.collect(steps[1])
    with pytest.raises(ValueError, match="step 3 is not the oldest in flight, which is none"):
        world.session.collect(3)


# ------------------------------------------------------------------------------------------------------------- buffers


def test_steps_in_flight_do_not_see_each_other(world: World, expected: Logits) -> None:
    """The lazy device reads the pinned inputs of all of them after the last is enqueued."""
    steps = [world.step([world.prompt(tokens, 4 * i)]) for i, tokens in enumerate((A[:5], B, A[3:9], B[2:]))]
    wanted = [expected(tokens)[-1:] for tokens in (A[:5], B, A[3:9], B[2:])]
    got = []
    world.session.enqueue(steps[0])
    for step, oldest in zip(steps[1:], steps, strict=False):
        world.session.enqueue(step)
        got.append(world.collect(oldest).logits)
    got.append(world.collect(steps[-1]).logits)
    for logits, want in zip(got, wanted, strict=True):
        assert error(logits, want) < CLOSE


def test_inputs_and_outputs_of_steps_in_flight_share_no_pinned_memory(world: World) -> None:
    """Nothing of a step's arrays, pinned or not, is written by enqueueing the next."""
    pinned = [each for each in MACHINE.memory.living() if each.kind == "pinned"]
    assert len(pinned) == 3 * SLOTS

    def contents() -> list[bytes]:
        return [bytes(each.view(each.address, each.size_bytes)) for each in pinned]

    def changed(before: list[bytes]) -> set[int]:
        return {i for i, (old, new) in enumerate(zip(before, contents(), strict=True)) if old != new}

    before = contents()
    first = world.step([world.prompt(A[:5], 0)])
    world.session.enqueue(first)
    inputs_of_first = changed(before)
    before = contents()
    second = world.step([world.prompt(B, 4)])
    world.session.enqueue(second)
    inputs_of_second = changed(before)
    before = contents()
    world.session.collect(first.id)
    outputs_of_first = changed(before)
    before = contents()
    world.session.collect(second.id)
    outputs_of_second = changed(before)
    groups = (inputs_of_first, inputs_of_second, outputs_of_first, outputs_of_second)
    assert [len(group) for group in groups] == [1, 1, 2, 2]
    assert len(set().union(*groups)) == 6


def test_a_step_is_not_read_any_more_when_it_is_enqueued(world: World, expected: Logits) -> None:
    step = world.step([world.prompt(A[:5], 0)])
    world.session.enqueue(step)
    for array in (step.token_ids, step.query_starts, step.context_lengths, *step.block_tables, step.logit_rows):
        array[...] = 77
    step.needs_logits[...] = 0
    assert error(world.collect(step).logits, expected(A[:5])[-1:]) < CLOSE


def test_a_result_stays_until_the_next_call_and_while_another_step_is_in_flight(world: World, expected: Logits) -> None:
    first, second = world.step([world.prompt(A[:5], 0)]), world.step([world.prompt(B, 4)])
    world.session.enqueue(first)
    world.session.enqueue(second)
    result = world.session.collect(first.id)
    driver.cuCtxSynchronize()  # the second step runs, and writes what it gives
    assert error(result.logits, expected(A[:5])[-1:]) < CLOSE
    assert result.token_ids is not None
    assert result.token_ids.tolist() == [int(expected(A[:5])[-1].argmax())]
    assert error(world.collect(second).logits, expected(B)[-1:]) < CLOSE


def test_closing_waits_for_steps_that_nobody_collects(fake_engine: FakeEngine) -> None:
    with open_world(fake_engine("float16")) as world:
        world.session.enqueue(world.step([world.prompt(A[:5], 0)]))
        world.session.enqueue(world.step([world.prompt([A[5]], 0, start=5)]))


def test_activations_of_both_profiles_share_the_memory_of_the_larger(world: World) -> None:
    sizes = [each.size_bytes for each in MACHINE.memory.living() if each.kind == "device 0"]
    assert SCRATCH_BYTES[1] in sizes
    assert SCRATCH_BYTES[0] not in sizes


# ------------------------------------------------------------------------------------------------------ token sources


def one_by_one(world: World, prompts: Sequence[Sequence[int]], num_steps: int) -> list[list[int]]:
    """Greedy tokens, each step described when the one before is collected."""
    tokens = [list(prompt) for prompt in prompts]
    starts = [0] * len(prompts)
    for _ in range(num_steps):
        pieces = [world.prompt(each[start:], 4 * i, start, TOKEN) for i, (each, start) in _numbered(tokens, starts)]
        result = world.run(world.step(pieces))
        assert result.token_ids is not None
        starts = [len(each) for each in tokens]
        for each, token in zip(tokens, result.token_ids, strict=True):
            each.append(int(token))
    return [each[len(prompt) :] for each, prompt in zip(tokens, prompts, strict=True)]


def _numbered(tokens: list[list[int]], starts: list[int]) -> list[tuple[int, tuple[list[int], int]]]:
    return list(enumerate(zip(tokens, starts, strict=True)))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)], ids=["in order", "in another order"])
def test_steps_that_are_described_before_their_tokens_are_known(
    order: tuple[int, ...], fake_engine: FakeEngine
) -> None:
    prompts = [A[:5], B, A[6:9]]
    with open_world(fake_engine("float16")) as world:
        known = one_by_one(world, prompts, 5)
    assert len({tuple(each) for each in known}) == 3  # or rows that are mixed up would not be noticed
    with open_world(fake_engine("float16")) as world:
        got: list[list[int]] = [[], [], []]
        before = world.step([world.prompt(prompt, 4 * i, want=TOKEN) for i, prompt in enumerate(prompts)])
        rows = {i: i for i in range(3)}
        world.session.enqueue(before)
        for number in range(5):
            if number < 4:
                sequences = order if number % 2 == 0 else (0, 1, 2)
                pieces = [
                    world.prompt([Chosen(before.id, rows[i])], 4 * i, len(prompts[i]) + number, TOKEN)
                    for i in sequences
                ]
                after = world.step(pieces)
                world.session.enqueue(after)
            result = world.collect(before)
            assert result.token_ids is not None
            for i, row in rows.items():
                got[i].append(int(result.token_ids[row]))
            before, rows = after, {i: row for row, i in enumerate(sequences)}
    assert got == known


def test_a_token_of_a_prompt_step_in_a_step_with_another_prompt(world: World, expected: Logits) -> None:
    """Rows of the first step lie elsewhere than its sequences, since a chunk of a prompt has none."""
    first = world.step([Piece(A[:6], 0, world.blocks(0, 1)), world.prompt(B, 4, want=TOKEN)])
    second = world.step([world.prompt(A[6:], 0, start=6), world.prompt([Chosen(first.id, 0)], 4, start=len(B))])
    world.session.enqueue(first)
    world.session.enqueue(second)
    token = int(expected(B)[-1].argmax())
    first_result, second_result = world.collect(first), world.collect(second)
    assert first_result.token_ids is not None
    assert first_result.token_ids.tolist() == [token]
    assert error(second_result.logits, np.concatenate([expected(A)[-1:], expected([*B, token])[-1:]])) < CLOSE


@pytest.mark.parametrize("source", [0, 1, 3, 9])
def test_a_token_of_another_step_than_the_one_before_is_refused(source: int, world: World) -> None:
    world.run(world.step([world.prompt(A[:5], 0)]))
    world.session.enqueue(world.step([world.prompt(B, 4)]))
    stranger = world.step([world.prompt([Chosen(source, 0)], 4, start=len(B))])
    with pytest.raises(ValueError, match=f"step 3 has a token of step {source}; the step before it was 2"):
        world.session.enqueue(stranger)
    world.session.collect(2)
    world.run(world.step([world.prompt(A[:5], 0)]))  # nothing has happened to the session


def test_rows_that_nothing_reads_leave_the_tokens_alone(world: World, expected: Logits) -> None:
    """R = 0: the step before has no tokens, but those behind it do."""
    middle = world.step([Piece(A[:5], 0, world.blocks(0))])
    assert calls_of(lambda: world.session.enqueue(middle)) == ["cuMemcpyHtoDAsync", "execute_async_v3", "cuEventRecord"]
    result = world.collect(middle)
    assert (result.logits.shape, result.candidate_ids.shape, result.log_sums.shape) == ((0, 320), (0, 64), (0,))
    assert result.token_ids is not None
    assert result.token_ids.tolist() == []
    assert error(world.run(world.step([world.prompt(A[5:], 0, start=5)])).logits, expected(A)[-1:]) < CLOSE


def test_a_prompt_of_one_token_without_a_row(world: World, expected: Logits) -> None:
    """It has the shape of a step that decodes."""
    world.run(world.step([Piece(A[:1], 0, world.blocks(0))]))
    logits: Array = world.run(world.step([world.prompt(A[1:2], 0, start=1)])).logits
    assert error(logits, expected(A[:2])[-1:]) < CLOSE


def test_the_world_itself_gives_rows_that_differ(expected: Logits) -> None:
    """Or comparing them would show nothing."""
    assert error(expected(A[:5])[-1:], expected(B)[-1:]) > 0.5
