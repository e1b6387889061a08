"""LLM.generate_async on a tiny engine: results, streams, ends, from threads and event loops."""

import asyncio
import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from precast import LLM, QueueFullError, RequestOutput, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_engine: Callable[..., Path]) -> Iterator[LLM]:
    with LLM(tiny_engine("gqa")) as llm:
        yield llm


@pytest.fixture
def slow(tiny_engine: Callable[..., Path]) -> Iterator[LLM]:
    """One request at a time, so that others wait."""
    with LLM(tiny_engine("gqa"), max_batch_size=1, max_num_tokens=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def expected(llm: LLM) -> RequestOutput:
    return llm.generate("print(", GREEDY, use_tqdm=False)


def wait_until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.001)


def num_engine_threads() -> int:
    return sum(thread.name == "precast-events" for thread in threading.enumerate())


def is_idle(llm: LLM) -> bool:
    return not llm.counters["num_active_requests"] and not llm.counters["num_queued_requests"]


def test_every_way_to_the_result(llm: LLM, expected: RequestOutput) -> None:
    async def main() -> list[RequestOutput]:
        future = llm.generate_async("print(", GREEDY)
        return [await future, await llm.generate_async("print(", GREEDY).aresult(), future.result()]

    outputs = [llm.generate_async("print(", GREEDY).result(), *asyncio.run(main())]
    outputs += llm.generate_async("print(", GREEDY)
    assert [output.outputs for output in outputs] == [expected.outputs] * 5
    assert all(output.finished and output.prompt == "print(" for output in outputs)


def test_every_way_to_follow(llm: LLM, expected: RequestOutput) -> None:
    async def follow() -> list[RequestOutput]:
        return [output async for output in llm.generate_async("print(", GREEDY, streaming=True)]

    for outputs in (list(llm.generate_async("print(", GREEDY, streaming=True)), asyncio.run(follow())):
        assert "".join(output.outputs[0].text_diff for output in outputs) == expected.outputs[0].text
        diffs = [output.outputs[0].token_ids_diff for output in outputs]
        assert list(itertools.chain(*diffs)) == expected.outputs[0].token_ids
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]


def test_logprobs_stream_too(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=2)
    whole = llm.generate([5], params, use_tqdm=False).outputs[0].logprobs
    diffs = [out.outputs[0].logprobs_diff for out in llm.generate_async([5], params, streaming=True)]
    assert list(itertools.chain(*(diff or [] for diff in diffs))) == whole


def test_many_run_side_by_side(llm: LLM) -> None:
    prompts = [[20 + i] * (i + 1) for i in range(12)]
    alone = [llm.generate(prompt, GREEDY, use_tqdm=False).outputs for prompt in prompts]

    async def main() -> list[RequestOutput]:
        return await asyncio.gather(*(llm.generate_async(prompt, GREEDY).aresult() for prompt in prompts))

    assert [output.outputs for output in asyncio.run(main())] == alone
    futures = [llm.generate_async(prompt, GREEDY) for prompt in prompts]
    assert [future.result().outputs for future in reversed(futures)] == alone[::-1]


def test_several_loops_in_several_threads(llm: LLM, expected: RequestOutput) -> None:
    seen: list[str] = []

    async def follow() -> None:
        async for output in llm.generate_async("print(", GREEDY, streaming=True):
            last = output
        seen.append(last.outputs[0].text)

    async def main() -> None:
        await asyncio.gather(*(follow() for _ in range(4)))

    threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert seen == [expected.outputs[0].text] * 16


def test_what_was_preprocessed_is_taken(llm: LLM, expected: RequestOutput) -> None:
    preprocessed = llm.preprocess("print(", GREEDY)
    assert preprocessed.prompt_token_ids == expected.prompt_token_ids
    assert llm.generate_async(preprocessed, GREEDY).result().outputs == expected.outputs
    two = llm.preprocess(["print(", [5]])
    assert [each.prompt_token_ids for each in two] == [expected.prompt_token_ids, [5]]
    outputs = llm.generate(two, GREEDY, use_tqdm=False)
    assert [output.prompt for output in outputs] == ["print(", None]
    assert outputs[0].outputs == expected.outputs


def test_it_takes_one_prompt(llm: LLM) -> None:
    with pytest.raises(ValueError, match="generate_async takes one prompt; use generate, or call it once for each"):
        llm.generate_async(["a", "b"])  # type: ignore[list-item]


def test_a_bad_prompt_is_refused_at_once(llm: LLM) -> None:
    with pytest.raises(ValueError, match="the prompt has token id 320 at position 0"):
        llm.generate_async([320])


# -------------------------------------------------------------------------------------------------------- early ends


def test_abort(llm: LLM) -> None:
    future = llm.generate_async([5], ENDLESS, streaming=True)
    next(iter(future))
    future.abort()
    output = future.result(10)
    assert output.finished
    assert output.outputs[0].finish_reason in ("cancelled", "length")
    assert is_idle(llm)


def test_abort_before_it_starts(slow: LLM) -> None:
    futures = [slow.generate_async([5], ENDLESS) for _ in range(20)]
    for future in futures:
        future.abort()
    outputs = [future.result(10).outputs[0] for future in futures]
    assert {output.finish_reason for output in outputs} == {"cancelled"}
    assert outputs[-1].token_ids == []
    assert is_idle(slow)


def test_a_cancelled_task_aborts(slow: LLM) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(slow.generate_async([5], ENDLESS).aresult())
        other = asyncio.ensure_future(slow.generate_async([6], ENDLESS).aresult())
        await asyncio.sleep(0.01)
        task.cancel()
        other.cancel()
        await asyncio.wait([task, other])
        assert task.cancelled()

    asyncio.run(main())
    wait_until(lambda: is_idle(slow))
    assert slow.counters["num_completed_requests"] == 2


def test_a_forgotten_future_aborts(slow: LLM) -> None:
    futures = [slow.generate_async([5], ENDLESS) for _ in range(50)]
    del futures
    gc.collect()
    wait_until(lambda: is_idle(slow))


def test_a_time_limit(slow: LLM) -> None:
    first = slow.generate_async([5], ENDLESS)
    late = slow.generate_async([5], ENDLESS, timeout_s=0.001)
    assert late.result(10).outputs[0].finish_reason == "timeout"
    first.abort()
    (output,) = slow.generate([[5] * 200], ENDLESS, use_tqdm=False, timeout_s=0.01)
    assert (output.outputs[0].finish_reason, output.outputs[0].length) == ("timeout", 0)


def test_shutdown_ends_what_runs(tiny_engine: Callable[..., Path]) -> None:
    llm = LLM(tiny_engine("gqa"), max_batch_size=1, max_num_tokens=1)
    futures = [llm.generate_async([5], ENDLESS, streaming=True) for _ in range(200)]
    next(iter(futures[0]))
    llm.shutdown()
    assert all(future.done() for future in futures)
    assert {future.result().outputs[0].finish_reason for future in futures} <= {"cancelled", "length"}
    assert futures[-1].result().outputs[0].finish_reason == "cancelled"
    futures[-1].abort()
    with pytest.raises(RuntimeError, match=r"^LLM is shutting down$"):
        llm.generate_async([5])


def test_a_future_keeps_its_llm(tiny_engine: Callable[..., Path]) -> None:
    before = num_engine_threads()
    future = LLM(tiny_engine("gqa")).generate_async([5], GREEDY)
    owner = weakref.ref(future._owner)
    gc.collect()
    assert future.result(30).outputs[0].length == 24
    gc.collect()
    assert owner() is None
    assert num_engine_threads() == before


def test_an_llm_in_a_cycle_is_collected(tiny_engine: Callable[..., Path]) -> None:
    before = num_engine_threads()
    llm = LLM(tiny_engine("gqa"))
    futures = [llm.generate_async([5], ENDLESS)]
    llm.futures = futures  # type: ignore[attr-defined]
    gone = weakref.ref(llm)
    del llm, futures
    gc.collect()
    assert gone() is None
    assert num_engine_threads() == before


# --------------------------------------------------------------------------------------------------------- the queue


def test_a_full_queue_is_said(tiny_engine: Callable[..., Path]) -> None:
    with LLM(tiny_engine("gqa"), max_batch_size=1, max_num_tokens=1, max_queue_size=2) as llm:
        futures = [llm.generate_async([5] * 50, ENDLESS)]
        wait_until(lambda: llm.counters["num_active_requests"] == 1)
        futures += [llm.generate_async([5], ENDLESS) for _ in range(2)]
        with pytest.raises(QueueFullError, match="1 more requests would exceed max_queue_size"):
            llm.generate_async([5], ENDLESS)
        for future in futures:
            future.abort()
            future.result(10)
        assert llm.generate_async([5], GREEDY).result(30).finished
        with pytest.raises(ValueError, match=r"n must be at most max_queue_size \(2\), got 3: it would never start"):
            llm.generate_async([5], SamplingParams(n=3))


def test_generate_waits_for_room_in_the_queue(tiny_engine: Callable[..., Path], llm: LLM) -> None:
    prompts = [[20 + i] for i in range(30)]
    expected = [output.outputs for output in llm.generate(prompts, GREEDY, use_tqdm=False)]
    with LLM(tiny_engine("gqa"), max_batch_size=2, max_queue_size=3) as narrow:
        outputs = narrow.generate(prompts, GREEDY, use_tqdm=False)
    assert [output.outputs for output in outputs] == expected


def test_higher_priorities_start_first(slow: LLM) -> None:
    running = slow.generate_async([5] * 100, ENDLESS)
    wait_until(lambda: slow.counters["num_active_requests"] == 1)
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    priorities = [0.2, 0.9, 0.5, 0.7]
    futures = [slow.generate_async([6], params, priority=priority) for priority in priorities]
    running.abort()
    started = [future.result(30).metrics.first_scheduled_ns or 0 for future in futures]
    order = sorted(range(4), key=lambda i: started[i])
    assert [priorities[i] for i in order] == [0.9, 0.7, 0.5, 0.2]


def test_the_bar_moves_in_the_order_of_ends(slow: LLM) -> None:
    """The first prompt has the lowest priority, so the bar moves while it waits."""
    seen: list[int] = []

    class Bar:
        def __init__(self, **_: object) -> None:
            pass

        def set_postfix_str(self, text: str, refresh: bool) -> None:
            pass

        def update(self, count: int) -> None:
            seen.append(slow.counters["num_completed_requests"])

        def close(self) -> None:
            pass

    params = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in (150, 3, 3, 3)]
    slow.generate([[5], [6], [7], [8]], params, use_tqdm=Bar, priority=[0.0, 1.0, 1.0, 1.0])
    assert seen[0] < 4  # others had ended, and were shown, before the first one
    assert len(seen) == 4
