"""Each parameter of choice and of stopping, on a tiny engine."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precast import LLM, CompletionOutput, SamplingParams
from precast.runtime import Model

PROMPT = [5, 260, 99]
FIELDS: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True}


@pytest.fixture(scope="module")
def llm(tiny_engine: Callable[..., Path]) -> Iterator[LLM]:
    with LLM(tiny_engine("gqa")) as llm:
        yield llm


def complete(llm: LLM, **fields: Any) -> CompletionOutput:
    return llm.generate(PROMPT, SamplingParams(**{**FIELDS, **fields}), use_tqdm=False).outputs[0]


def test_logprobs_are_those_of_the_raw_logits(llm: LLM, tiny_engine: Callable[..., Path]) -> None:
    output = complete(llm, logprobs=3, repetition_penalty=1.7, min_p=0.5, logit_bias={7: 5.0})
    assert output.logprobs is not None
    assert output.cumulative_logprob is not None
    with Model(tiny_engine("gqa")) as model:
        logits = model.logits([*PROMPT, *output.token_ids])[len(PROMPT) - 1 : -1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for token_id, given, row in zip(output.token_ids, output.logprobs, expected, strict=True):
        best = np.argsort(-row, kind="stable")
        assert set(given) == {token_id, *best[:3]}
        assert next(iter(given)) == token_id
        for each, logprob in given.items():
            assert logprob.logprob == pytest.approx(row[each], abs=1e-4)
            assert logprob.rank == 1 + int((best == each).argmax())
            assert logprob.decoded_token == llm.tokenizer.decode([each], skip_special_tokens=False)  # type: ignore[union-attr]
    chosen = [given[token_id].logprob for token_id, given in zip(output.token_ids, output.logprobs, strict=True)]
    assert output.cumulative_logprob == pytest.approx(sum(chosen))


@pytest.mark.parametrize(("logprobs", "count"), [(0, 1), (-1, 320)])
def test_logprobs_of_none_beside_and_of_all(llm: LLM, logprobs: int, count: int) -> None:
    output = complete(llm, logprobs=logprobs, max_tokens=3)
    assert [len(each) for each in output.logprobs or ()] == [count] * 3
    if logprobs == -1:
        for each in output.logprobs or ():
            assert math.fsum(math.exp(logprob.logprob) for logprob in each.values()) == pytest.approx(1, abs=1e-4)


def test_only_allowed_tokens(llm: LLM) -> None:
    assert set(complete(llm, temperature=5.0, seed=1, allowed_token_ids=[40, 50, 60]).token_ids) <= {40, 50, 60}


def test_a_logit_bias_forces_and_forbids(llm: LLM) -> None:
    assert set(complete(llm, logit_bias={77: 1000.0}).token_ids) == {77}
    first = complete(llm).token_ids[0]
    assert first not in complete(llm, logit_bias={first: -1e30}).token_ids


def test_bad_words(llm: LLM) -> None:
    """A word of several tokens: its last one is forbidden after the others."""
    assert llm.tokenizer is not None
    wanted = {"temperature": 100.0, "seed": 4, "max_tokens": 200, "allowed_token_ids": llm.tokenizer.encode("xyz")[1:]}
    assert llm.tokenizer.encode("yz", add_special_tokens=False) == llm.tokenizer.encode("xyz")[2:]
    assert "yz" in complete(llm, **wanted).text
    output = complete(llm, **wanted, bad_words=["yz"]).text
    assert "yz" not in output
    assert {"zy", "yy", "zz"} <= {output[i : i + 2] for i in range(len(output))}


@pytest.mark.parametrize(
    "penalty", [{"frequency_penalty": 2.0}, {"presence_penalty": 2.0}, {"repetition_penalty": 10.0}]
)
def test_penalties_discourage(llm: LLM, penalty: dict[str, float]) -> None:
    bias = next(bias for bias in range(1, 1000) if len(set(complete(llm, logit_bias={77: bias / 10}).token_ids)) == 1)
    fields = {"logit_bias": {77: bias / 10}}
    assert set(complete(llm, **fields).token_ids) == {77}
    assert Counter(complete(llm, **fields, **penalty).token_ids)[77] < 24


def test_min_p_of_one_leaves_the_most_likely(llm: LLM) -> None:
    assert complete(llm, temperature=1.0, seed=3, min_p=1.0).token_ids == complete(llm).token_ids


def test_min_tokens_keeps_the_end_away(llm: LLM) -> None:
    (eos,) = llm.info["eos_token_ids"]
    ending = {"ignore_eos": False, "logit_bias": {eos: 1000.0}}
    assert complete(llm, **ending).token_ids == [eos]
    later = complete(llm, **ending, min_tokens=5)
    assert (later.length, later.token_ids[-1], later.finish_reason, later.stop_reason) == (6, eos, "stop", None)
    assert eos not in later.token_ids[:-1]


def test_an_end_id_takes_the_place_of_the_models(llm: LLM) -> None:
    (eos,) = llm.info["eos_token_ids"]
    free = complete(llm).token_ids
    end = free[4]
    output = complete(llm, ignore_eos=False, end_id=end)
    assert output.token_ids == free[: free.index(end) + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", None)
    assert set(complete(llm, ignore_eos=False, end_id=end, logit_bias={eos: 1000.0}).token_ids) == {eos}


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_ends_the_request(llm: LLM, include: bool) -> None:
    free = complete(llm, max_tokens=200)
    at = len(free.text) // 4
    stop = free.text[at : at + 3]
    start = free.text.index(stop)
    before = llm.counters["output_tokens"]
    output = complete(llm, max_tokens=200, stop=[stop, "never in there"], include_stop_str_in_output=include)
    assert output.text == free.text[: start + len(stop) * include]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    assert output.token_ids == free.token_ids[: output.length]
    assert llm.counters["output_tokens"] - before < 150  # the engine has heard of it


def test_stop_strings_stream_only_what_stays(llm: LLM) -> None:
    free = complete(llm, max_tokens=100)
    stop = free.text[20:24]
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True, stop=stop)
    shown = ""
    for output in llm.generate_async(PROMPT, params, streaming=True):
        shown += output.outputs[0].text_diff
        assert free.text[: free.text.index(stop)].startswith(shown)
    assert shown == free.text[: free.text.index(stop)]


def test_cached_tokens_are_counted_and_salted(tiny_engine: Callable[..., Path]) -> None:
    prompt = list(range(20, 60))
    one = SamplingParams(temperature=0, max_tokens=1)
    with LLM(tiny_engine("gqa")) as llm:
        salts = [None, None, "a", "b", "a"]
        cached = [llm.generate(prompt, one, use_tqdm=False, cache_salt=s).num_cached_tokens for s in salts]
        assert cached == [0, 32, 0, 0, 32]
        in_prompt = llm.generate({"prompt_token_ids": prompt, "cache_salt": "b"}, one, use_tqdm=False)
        assert in_prompt.num_cached_tokens == 32
        llm.reset_prefix_cache()
        assert llm.generate(prompt, one, use_tqdm=False).num_cached_tokens == 0


def test_the_outputs_of_n_share_their_prompt(tiny_engine: Callable[..., Path]) -> None:
    with LLM(tiny_engine("gqa")) as llm:
        prompt = list(range(20, 100))
        llm.generate(prompt, SamplingParams(n=4, seed=1, max_tokens=2), use_tqdm=False)
        assert llm.counters["prompt_tokens_computed"] < 2 * len(prompt)
