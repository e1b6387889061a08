"""LLM.generate and LLM.stream on a tiny engine: what comes back, and that it depends on the request alone."""

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from precast import LLM, RequestOutput, SamplingParams
from tests.tiny_llama import (
    BOS_TOKEN_ID,
    EOS_TOKEN_ID,
    GREEDY_STEPS,
    PROMPTS,
    VARIANTS,
    reference_greedy,
)

GREEDY = SamplingParams(temperature=0, max_tokens=GREEDY_STEPS, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_engine: Callable[..., Path]) -> Iterator[LLM]:
    with LLM(tiny_engine("gqa")) as llm:
        yield llm


def ids_of(output: RequestOutput) -> list[int]:
    return output.outputs[0].token_ids


# ------------------------------------------------------------------------------------------------- right tokens


@pytest.mark.parametrize("variant", [name for name, variant in VARIANTS.items() if variant.dtype == "float32"])
def test_greedy_tokens_are_those_of_transformers(
    variant: str, tiny_engine: Callable[..., Path], tiny_llama: Callable[..., Path]
) -> None:
    with LLM(tiny_engine(variant)) as llm:
        outputs = llm.generate([list(prompt) for prompt in PROMPTS], GREEDY, use_tqdm=False)
    assert [ids_of(output) for output in outputs] == [
        reference_greedy(tiny_llama(variant), prompt)[0] for prompt in PROMPTS
    ]


# ---------------------------------------------------------------------------------------------- what goes in and out


def test_one_input_gives_one_output(llm: LLM) -> None:
    text = "A dictionary maps"
    assert llm.tokenizer is not None
    ids = llm.tokenizer.encode(text)
    inputs: list[Any] = [text, ids, tuple(ids), np.array(ids), {"prompt": text}, {"prompt_token_ids": ids}]
    outputs = [llm.generate(each, GREEDY, use_tqdm=False) for each in inputs]
    assert all(isinstance(output, RequestOutput) for output in outputs)
    assert {tuple(output.prompt_token_ids) for output in outputs} == {tuple(ids)}
    assert len({tuple(ids_of(output)) for output in outputs}) == 1
    assert [output.prompt for output in outputs] == [text, None, None, None, text, None]


def test_a_list_gives_a_list_in_its_order(llm: LLM) -> None:
    inputs: list[Any] = ["print(", [5, 260, 99], {"prompt": "東京"}, {"prompt_token_ids": [17]}]
    params = [SamplingParams(temperature=0, max_tokens=count) for count in (9, 3, 6, 1)]
    outputs = llm.generate(inputs, params, use_tqdm=False)
    assert [output.prompt for output in outputs] == ["print(", None, "東京", None]
    assert [output.outputs[0].length for output in outputs] == [9, 3, 6, 1]
    assert [output.request_id for output in outputs] == list(range(outputs[0].request_id, outputs[0].request_id + 4))
    alone = [llm.generate(each, each_params, use_tqdm=False) for each, each_params in zip(inputs, params, strict=True)]
    assert [ids_of(output) for output in outputs] == [ids_of(output) for output in alone]


def test_a_list_of_one_gives_a_list(llm: LLM) -> None:
    assert [type(output) for output in llm.generate(["print("], GREEDY, use_tqdm=False)] == [RequestOutput]


def test_no_inputs_give_no_outputs(llm: LLM) -> None:
    inputs: list[str] = []
    assert llm.generate(inputs, use_tqdm=False) == []


def test_text_is_the_decoded_output(llm: LLM) -> None:
    assert llm.tokenizer is not None
    output = llm.generate("Grüße aus", SamplingParams(temperature=1.5, seed=1, max_tokens=200), use_tqdm=False)
    decoded = llm.tokenizer.decode(output.prompt_token_ids + ids_of(output))
    prompt = llm.tokenizer.decode(output.prompt_token_ids)
    assert decoded == prompt + output.outputs[0].text
    assert not output.outputs[0].text.isascii()  # the comparison met characters of several tokens


def test_special_tokens_are_added_to_text_unless_told_otherwise(llm: LLM) -> None:
    with_bos = llm.generate("print(", GREEDY, use_tqdm=False)
    without = llm.generate("print(", SamplingParams(temperature=0, add_special_tokens=False), use_tqdm=False)
    assert with_bos.prompt_token_ids == [BOS_TOKEN_ID, *without.prompt_token_ids]


def test_metrics_are_in_order(llm: LLM) -> None:
    metrics = llm.generate("print(", GREEDY, use_tqdm=False).metrics
    assert metrics.first_token_ns is not None
    assert metrics.last_token_ns is not None
    assert metrics.submitted_ns < metrics.first_token_ns < metrics.last_token_ns


def test_skip_tokenizer_init_works_on_ids(tiny_engine: Callable[..., Path], llm: LLM) -> None:
    with LLM(tiny_engine("gqa"), skip_tokenizer_init=True) as bare:
        output = bare.generate([5, 260, 99], GREEDY, use_tqdm=False)
        assert bare.tokenizer is None
        with pytest.raises(ValueError, match="skip_tokenizer_init is set: give prompt_token_ids"):
            bare.generate("print(", use_tqdm=False)
    assert output.outputs[0].text == ""
    assert ids_of(output) == ids_of(llm.generate([5, 260, 99], GREEDY, use_tqdm=False))


def test_another_tokenizer(tiny_engine: Callable[..., Path], tmp_path: Path) -> None:
    from tests.precast.tiny_tokenizers import byte_fallback

    byte_fallback().save(str(tmp_path / "tokenizer.json"))
    with LLM(tiny_engine("gqa"), tokenizer=tmp_path) as llm:
        output = llm.generate("the cat", GREEDY, use_tqdm=False)
    assert output.prompt_token_ids == byte_fallback().encode("the cat").ids


# --------------------------------------------------------------------------------------------------- stopping


def test_it_stops_after_max_tokens(llm: LLM) -> None:
    (completion,) = llm.generate("print(", SamplingParams(temperature=0, max_tokens=5), use_tqdm=False).outputs
    assert (completion.length, completion.finish_reason, completion.stop_reason) == (5, "length", None)


def test_it_stops_at_a_stop_token_id(llm: LLM) -> None:
    expected = ids_of(llm.generate("print(", GREEDY, use_tqdm=False))
    stop = expected[3]
    params = SamplingParams(temperature=0, max_tokens=GREEDY_STEPS, stop_token_ids=[stop])
    (completion,) = llm.generate("print(", params, use_tqdm=False).outputs
    assert completion.token_ids == expected[: expected.index(stop) + 1]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)


def test_it_stops_at_the_end_of_the_sequence(tiny_engine: Callable[..., Path]) -> None:
    """Nearly uniform noise draws one of the two ends within 200 tokens, for most seeds."""
    params = [SamplingParams(temperature=1e6, seed=seed, max_tokens=200) for seed in range(8)]
    going_on = [SamplingParams(temperature=1e6, seed=seed, max_tokens=200, ignore_eos=True) for seed in range(8)]
    with LLM(tiny_engine("eos_list")) as llm:
        ends = set(llm.info["eos_token_ids"])
        stopping = llm.generate([[5]] * 8, params, use_tqdm=False)
        longer = llm.generate([[5]] * 8, going_on, use_tqdm=False)
    assert ends == {EOS_TOKEN_ID, 7}
    stopped = [i for i, output in enumerate(stopping) if output.outputs[0].finish_reason == "stop"]
    assert len(stopped) > 3
    for i in stopped:
        (completion,) = stopping[i].outputs
        assert completion.stop_reason is None
        assert completion.token_ids[-1] in ends
        assert not ends & set(completion.token_ids[:-1])
        assert ids_of(longer[i])[: completion.length] == completion.token_ids
    assert {(output.outputs[0].length, output.outputs[0].finish_reason) for output in longer} == {(200, "length")}


def test_it_stops_at_max_seq_len(llm: LLM) -> None:
    prompt = [5] * 250
    for max_tokens in (None, 100, 6):
        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        (completion,) = llm.generate(prompt, params, use_tqdm=False).outputs
        assert (completion.length, completion.finish_reason) == (6, "length")


def test_the_longest_prompt_leaves_room_for_one_token(llm: LLM) -> None:
    (completion,) = llm.generate([5] * 255, GREEDY, use_tqdm=False).outputs
    assert (completion.length, completion.finish_reason) == (1, "length")


# --------------------------------------------------------------------------------------------------- sampling


def test_a_seed_gives_the_same_tokens_again(llm: LLM) -> None:
    params = SamplingParams(seed=7, max_tokens=24, ignore_eos=True)
    first, second = (llm.generate("print(", params, use_tqdm=False) for _ in range(2))
    assert ids_of(first) == ids_of(second)
    assert first.outputs[0].seed == 7


def test_without_a_seed_the_reported_one_gives_the_same_tokens(llm: LLM) -> None:
    first = llm.generate("print(", SamplingParams(max_tokens=24, ignore_eos=True), use_tqdm=False)
    again = SamplingParams(max_tokens=24, ignore_eos=True, seed=first.outputs[0].seed)
    assert ids_of(first) == ids_of(llm.generate("print(", again, use_tqdm=False))


def test_other_seeds_give_other_tokens(llm: LLM) -> None:
    params = [SamplingParams(seed=seed, max_tokens=24, temperature=2.0, ignore_eos=True) for seed in range(8)]
    outputs = llm.generate(["print("] * 8, params, use_tqdm=False)
    assert len({tuple(ids_of(output)) for output in outputs}) == 8


def test_n_outputs_draw_with_the_seeds_that_follow(llm: LLM) -> None:
    together = llm.generate("print(", SamplingParams(n=3, seed=40, max_tokens=12), use_tqdm=False)
    one_each = [llm.generate("print(", SamplingParams(seed=40 + i, max_tokens=12), use_tqdm=False) for i in range(3)]
    assert [completion.index for completion in together.outputs] == [0, 1, 2]
    assert [completion.token_ids for completion in together.outputs] == [ids_of(output) for output in one_each]
    assert [completion.text for completion in together.outputs] == [output.outputs[0].text for output in one_each]
    assert together.finished


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 0}])
def test_the_narrowest_choice_is_the_greedy_one(llm: LLM, narrow: dict[str, Any]) -> None:
    params = SamplingParams(**{"seed": 5, "max_tokens": GREEDY_STEPS, "ignore_eos": True, **narrow})
    assert ids_of(llm.generate("print(", params, use_tqdm=False)) == ids_of(
        llm.generate("print(", GREEDY, use_tqdm=False)
    )


# ------------------------------------------------------------------------------------------- whoever runs beside it


def test_tokens_do_not_depend_on_the_crowd(tiny_engine: Callable[..., Path]) -> None:
    """Alone, or among forty others, with prompts cut into chunks that fall elsewhere."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 320, size).tolist() for size in rng.integers(1, 120, 40)]
    params = [
        SamplingParams(seed=i, temperature=float(i % 3), max_tokens=int(rng.integers(1, 60)), ignore_eos=True)
        for i in range(len(prompts))
    ]
    with LLM(tiny_engine("gqa", "bfloat16")) as llm:
        alone = [llm.generate(p, s, use_tqdm=False) for p, s in zip(prompts, params, strict=True)]
    with LLM(tiny_engine("gqa", "bfloat16"), max_batch_size=7, max_num_tokens=23) as llm:
        crowd = llm.generate(prompts, params, use_tqdm=False)
    assert [ids_of(output) for output in crowd] == [ids_of(output) for output in alone]


def test_several_threads_may_generate_at_once(llm: LLM) -> None:
    expected = ids_of(llm.generate("print(", GREEDY, use_tqdm=False))
    seen: list[list[int]] = []

    def work() -> None:
        seen.extend(ids_of(llm.generate("print(", GREEDY, use_tqdm=False)) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [expected] * 20


def test_two_engines_in_one_process(tiny_engine: Callable[..., Path], llm: LLM) -> None:
    expected = ids_of(llm.generate("print(", GREEDY, use_tqdm=False))
    with LLM(tiny_engine("tied")) as other:
        theirs = ids_of(other.generate("print(", GREEDY, use_tqdm=False))
        streams = [llm.stream("print(", GREEDY), other.stream("print(", GREEDY)]
        outputs = list(itertools.zip_longest(*streams))  # one step of each in turn
    last = [[output for output in each if output is not None][-1] for each in zip(*outputs, strict=True)]
    assert [ids_of(output) for output in last] == [expected, theirs]
    assert expected != theirs
    assert ids_of(llm.generate("print(", GREEDY, use_tqdm=False)) == expected


# -------------------------------------------------------------------------------------------------- streaming


def test_stream_gives_every_token_as_it_comes(llm: LLM) -> None:
    expected = llm.generate("print(", GREEDY, use_tqdm=False)
    texts, diffs, ids = [], [], []
    for output in llm.stream("print(", GREEDY):
        (completion,) = output.outputs
        texts.append(completion.text)
        diffs.append(completion.text_diff)
        ids += completion.token_ids_diff
    assert ids == ids_of(expected)
    assert "".join(diffs) == texts[-1]
    assert all(longer.startswith(text) for text, longer in itertools.pairwise(texts))
    assert texts[-1] == expected.outputs[0].text
    assert output.finished


def test_leaving_a_stream_cancels_its_request(llm: LLM) -> None:
    endless = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    stream = llm.stream([5], endless)
    output = next(stream)
    stream.close()
    llm.generate([5], SamplingParams(max_tokens=1), use_tqdm=False)  # served after the cancellation
    assert llm.counters["num_active_requests"] == 0
    assert output.outputs[0].length < 255


def test_stream_takes_one_prompt(llm: LLM) -> None:
    with pytest.raises(ValueError, match="stream takes one prompt; use generate for several"):
        next(llm.stream(["a", "b"]))  # type: ignore[list-item]


# -------------------------------------------------------------------------------------------------- progress


class FakeBar:
    """What stands in for tqdm."""

    made: ClassVar[list["FakeBar"]] = []

    def __init__(self, *, total: int, **options: Any) -> None:
        self.total = total
        self.done = 0
        self.closed = False
        self.postfixes: list[str] = []
        FakeBar.made.append(self)

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        self.postfixes.append(text)

    def update(self, count: int) -> None:
        self.done += count

    def close(self) -> None:
        self.closed = True


def test_a_bar_counts_requests(llm: LLM) -> None:
    FakeBar.made.clear()
    llm.generate(["a", "b", "c"], GREEDY, use_tqdm=FakeBar)
    (bar,) = FakeBar.made
    assert (bar.total, bar.done, bar.closed) == (3, 3, True)
    assert all(text.startswith("input ") and " output " in text for text in bar.postfixes)


def test_the_default_bar_is_drawn_on_stderr(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(["a", "b"], GREEDY)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2/2" in captured.err
    llm.generate(["a", "b"], GREEDY, use_tqdm=False)
    assert capsys.readouterr().err == ""
