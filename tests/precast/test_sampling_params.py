"""SamplingParams refuses what cannot work, in words that name field, rule and value."""

import dataclasses
import math
import pickle
from typing import Any

import numpy as np
import pytest

from precast import SamplingParams

OUT_OF_RANGE: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "max_tokens must be in [1, 2147483647], got 0"),
    ({"max_tokens": 2**31}, "max_tokens must be in [1, 2147483647], got 2147483648"),
    ({"temperature": -0.1}, "temperature must be in [0, 3.4e+38], got -0.1"),
    ({"temperature": math.nan}, "temperature must be in [0, 3.4e+38], got nan"),
    ({"temperature": math.inf}, "temperature must be in [0, 3.4e+38], got inf"),
    ({"temperature": 1e39}, "temperature must be in [0, 3.4e+38], got 1e+39"),
    ({"top_k": -2}, "top_k must be in [-1, 2147483647], got -2"),
    ({"top_p": 0}, "top_p must be in (0, 1], got 0"),
    ({"top_p": 1.5}, "top_p must be in (0, 1], got 1.5"),
    ({"top_p": math.nan}, "top_p must be in (0, 1], got nan"),
    ({"seed": 2**64}, "seed must be in [-9223372036854775808, 18446744073709551615], got 18446744073709551616"),
    ({"n": 0}, "n must be in [1, 2147483647], got 0"),
    ({"n": 2, "temperature": 0}, "n must be 1 when temperature is 0 (all outputs would be the same), got 2"),
    ({"n": 2, "temperature": 9e-6}, "n must be 1 when temperature is 0 (all outputs would be the same), got 2"),
    ({"stop_token_ids": [5, -1]}, "stop_token_ids must be in [0, 2147483647], got -1"),
    ({"min_p": -0.1}, "min_p must be in [0, 1], got -0.1"),
    ({"min_p": math.nan}, "min_p must be in [0, 1], got nan"),
    ({"repetition_penalty": 0}, "repetition_penalty must be in (0, 3.4e+38], got 0"),
    ({"repetition_penalty": math.inf}, "repetition_penalty must be in (0, 3.4e+38], got inf"),
    ({"presence_penalty": 2.5}, "presence_penalty must be in [-2, 2], got 2.5"),
    ({"frequency_penalty": -2.5}, "frequency_penalty must be in [-2, 2], got -2.5"),
    ({"min_tokens": -1}, "min_tokens must be in [0, 2147483647], got -1"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens must be at most max_tokens (4), got 5"),
    ({"min_tokens": 33}, "min_tokens must be at most max_tokens (32), got 33"),
    ({"stop": ""}, "stop must not hold an empty string, got ''"),
    ({"stop": ["a", ""]}, "stop must not hold an empty string, got ['a', '']"),
    ({"stop": "a", "detokenize": False}, "stop must be None when detokenize is False (there is no text), got ('a',)"),
    ({"bad_words": [""]}, "bad_words must not hold an empty string, got ['']"),
    ({"bad": "a", "bad_words": "a"}, "bad and bad_words are the same field: give one of them"),
    ({"allowed_token_ids": []}, "allowed_token_ids must hold at least one id, got none: nothing could be chosen"),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids must be in [0, 2147483647], got -1"),
    ({"logit_bias": {-1: 0}}, "logit_bias must be in [0, 2147483647], got -1"),
    ({"logit_bias": {5: math.inf}}, "logit_bias[5] must be in [-inf, 3.4e+38], got inf"),
    ({"logit_bias": {5: math.nan}}, "logit_bias[5] must be in [-inf, 3.4e+38], got nan"),
    ({"logprobs": -2}, "logprobs must be in [-1, 2147483647], got -2"),
    ({"end_id": -1}, "end_id must be in [0, 2147483647], got -1"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens must be -1 or >= 1, got 0"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens must be in [-1, 2147483647], got -2"),
]

WRONG_TYPE: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 1.0}, "max_tokens must be an integer or None, got 1.0"),
    ({"max_tokens": True}, "max_tokens must be an integer or None, got True"),
    ({"temperature": "1"}, "temperature must be a number, got '1'"),
    ({"temperature": None}, "temperature must be a number, got None"),
    ({"top_p": True}, "top_p must be a number, got True"),
    ({"top_k": None}, "top_k must be an integer, got None"),
    ({"seed": "7"}, "seed must be an integer or None, got '7'"),
    ({"n": None}, "n must be an integer, got None"),
    ({"stop_token_ids": 5}, "stop_token_ids must be a sequence of integers or None, got 5"),
    ({"stop_token_ids": "ab"}, "stop_token_ids must be a sequence of integers or None, got 'ab'"),
    ({"stop_token_ids": ["a"]}, "stop_token_ids must be a sequence of integers or None, got 'a'"),
    ({"ignore_eos": 1}, "ignore_eos must be a bool, got 1"),
    ({"detokenize": None}, "detokenize must be a bool, got None"),
    ({"skip_special_tokens": "no"}, "skip_special_tokens must be a bool, got 'no'"),
    ({"include_stop_str_in_output": 1}, "include_stop_str_in_output must be a bool, got 1"),
    ({"min_p": "0"}, "min_p must be a number, got '0'"),
    ({"repetition_penalty": None}, "repetition_penalty must be a number, got None"),
    ({"min_tokens": None}, "min_tokens must be an integer, got None"),
    ({"stop": 5}, "stop must be a string, a sequence of strings or None, got 5"),
    ({"stop": b"a"}, "stop must be a string, a sequence of strings or None, got b'a'"),
    ({"stop": [5]}, "stop must be a string, a sequence of strings or None, got 5"),
    ({"bad": {"a": 1}}, "bad must be a string, a sequence of strings or None, got {'a': 1}"),
    ({"allowed_token_ids": "ab"}, "allowed_token_ids must be a sequence of integers or None, got 'ab'"),
    ({"logit_bias": [1.0]}, "logit_bias must be a mapping of token ids to numbers or None, got [1.0]"),
    ({"logit_bias": {"5": 1}}, "logit_bias must be an integer, got '5'"),
    ({"logit_bias": {5: "1"}}, "logit_bias[5] must be a number, got '1'"),
    ({"logprobs": True}, "logprobs must be an integer or None, got True"),
    ({"end_id": "</s>"}, "end_id must be an integer or None, got '</s>'"),
    ({"add_special_tokens": 0}, "add_special_tokens must be a bool, got 0"),
]


@pytest.mark.parametrize(("arguments", "message"), OUT_OF_RANGE)
def test_a_value_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole message is compared
        SamplingParams(**arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(("arguments", "message"), WRONG_TYPE)
def test_a_value_of_the_wrong_type(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        SamplingParams(**arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"max_tokens": None, "seed": None, "stop_token_ids": None, "truncate_prompt_tokens": None},
        {"max_tokens": 2**31 - 1, "top_k": -1, "top_p": 1.0, "truncate_prompt_tokens": -1},
        {"temperature": 0, "seed": -(2**63)},
        {"temperature": 3.4e38, "top_p": 1e-300, "seed": 2**64 - 1},
        {"stop_token_ids": [], "stop": [], "bad_words": [], "logit_bias": {}},
        {"min_p": 1, "repetition_penalty": 1e-300, "presence_penalty": -2, "frequency_penalty": 2},
        {"min_tokens": 4, "max_tokens": 4, "logprobs": -1, "end_id": 0},
        {"min_tokens": 10**6, "max_tokens": None},
        {"logit_bias": {0: -math.inf, 5: -3.4e38}},
    ],
)
def test_the_ends_of_the_ranges(arguments: dict[str, Any]) -> None:
    SamplingParams(**arguments)


def test_the_defaults() -> None:
    assert dataclasses.asdict(SamplingParams()) == {
        "max_tokens": 32,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logit_bias": None,
        "allowed_token_ids": None,
        "bad_words": None,
        "bad": None,
        "seed": None,
        "n": 1,
        "min_tokens": 0,
        "stop": None,
        "include_stop_str_in_output": False,
        "stop_token_ids": None,
        "end_id": None,
        "ignore_eos": False,
        "logprobs": None,
        "detokenize": True,
        "skip_special_tokens": True,
        "add_special_tokens": True,
        "truncate_prompt_tokens": None,
    }


def test_numbers_of_numpy_become_plain_ones() -> None:
    """ctypes takes no others."""
    params = SamplingParams(
        max_tokens=np.int64(3),
        temperature=np.float32(0.5),
        seed=np.uint64(2**64 - 1),
        stop_token_ids=np.array([4, 5]),  # type: ignore[arg-type]
    )
    assert params == SamplingParams(max_tokens=3, temperature=0.5, seed=2**64 - 1, stop_token_ids=(4, 5))
    values = (params.max_tokens, params.temperature, params.seed, *(params.stop_token_ids or ()))
    assert [type(value) for value in values] == [int, float, int, int, int]


def test_they_are_values() -> None:
    ids = [3]
    params = SamplingParams(stop_token_ids=ids)
    ids.append(4)
    assert params.stop_token_ids == (3,)
    assert len({params, SamplingParams(stop_token_ids=[3]), pickle.loads(pickle.dumps(params))}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.seed = 1  # type: ignore[misc]


def test_one_string_is_a_sequence_of_one() -> None:
    assert SamplingParams(stop="ab").stop == ("ab",)
    assert SamplingParams(bad_words="ab").bad_words == ("ab",)


def test_a_logit_bias_is_a_copy() -> None:
    bias = {np.int64(5): np.float32(1)}
    params = SamplingParams(logit_bias=bias)
    bias.clear()
    assert params.logit_bias == {5: 1.0}
    assert [type(each) for pair in params.logit_bias.items() for each in pair] == [int, float]
    assert params != SamplingParams()
    assert hash(params) == hash(SamplingParams(logit_bias={5: 1.0}))


@pytest.mark.parametrize(
    "field", ["prompt_logprobs", "best_of", "use_beam_search", "guided_decoding", "no_repeat_ngram_size", "xyz"]
)
def test_a_field_that_there_is_not_is_refused(field: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{field}'"):
        SamplingParams(**{field: 1})  # type: ignore[arg-type]


@pytest.mark.parametrize(("temperature", "greedy"), [(0, True), (9.9e-6, True), (1e-5, False), (1.0, False)])
def test_when_it_is_greedy(temperature: float, greedy: bool) -> None:
    assert SamplingParams(temperature=temperature).greedy is greedy
