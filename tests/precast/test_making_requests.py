"""From a prompt and its parameters to what the engine is asked, without an engine."""

import time
from datetime import timedelta
from typing import Any

import pytest

from precast import KvCacheRetentionConfig, SamplingParams, TokenRangeRetentionConfig
from precast.inputs import to_prompts
from precast.making_requests import RequestMaker
from precast.request_settings import RequestSettings, make_settings
from precast.runtime import Retention
from precast.tokenizer import Tokenizer
from tests.precast.fake_engine import INFO, make
from tests.precast.tiny_tokenizers import TOKENIZERS, byte_fallback

THE, CAT = (TOKENIZERS["byte_level"].encode(word).ids for word in ("the", " cat"))


def test_text_becomes_the_ids_that_the_tokenizer_gives(tokenizer: Tokenizer) -> None:
    (request,) = make("the cat", tokenizer)
    assert request.output.prompt == "the cat"
    assert request.output.prompt_token_ids == [*THE, *CAT]
    assert [list(native.prompt_token_ids) for native in request.native_requests] == [[*THE, *CAT]]


def test_text_needs_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="skip_tokenizer_init is set: give prompt_token_ids"):
        make("the cat")


def test_token_ids_stay_as_they_are() -> None:
    (request,) = make([5, 4, 5])
    assert request.output.prompt is None
    assert request.output.prompt_token_ids == [5, 4, 5]


def test_requests_are_numbered() -> None:
    assert [request.output.request_id for request in make([[5], [6], [7]])] == [10, 11, 12]


def test_parameters_reach_the_engine() -> None:
    (request,) = make([5], max_tokens=None, temperature=0.5, top_k=-1, top_p=1e-60, seed=-3, stop_token_ids=[7])
    (native,) = request.native_requests
    assert native.max_tokens is None
    assert native.temperature == 0.5
    assert native.top_k == 0
    assert native.top_p == 2.0**-126  # the smallest that is not 0 in float32
    assert native.seed == -3
    assert native.stop_token_ids == (7,)
    assert native.ignore_eos is False


def test_each_of_n_outputs_has_its_own_seed() -> None:
    (request,) = make([5], n=3, seed=40)
    assert [native.seed for native in request.native_requests] == [40, 41, 42]
    assert [(output.index, output.seed) for output in request.output.outputs] == [(0, 40), (1, 41), (2, 42)]


def test_seeds_wrap_around_to_ones_that_can_be_given_again() -> None:
    (request,) = make([5], n=2, seed=2**64 - 1)
    assert [output.seed for output in request.output.outputs] == [2**64 - 1, 0]


def test_without_a_seed_each_request_gets_a_fresh_one_that_is_reported() -> None:
    requests = make([[5], [5]])
    seeds = [request.output.outputs[0].seed for request in requests]
    assert seeds == [request.native_requests[0].seed for request in requests]
    assert len(set(seeds)) == 2
    SamplingParams(seed=seeds[0])


def test_greedy_outputs_have_no_seed() -> None:
    (request,) = make([5], temperature=0, seed=3)
    assert request.output.outputs[0].seed is None


@pytest.mark.parametrize(("truncate", "kept"), [(3, 3), (15, 15), (-1, 15)])
def test_the_last_tokens_of_a_prompt_are_kept(truncate: int, kept: int) -> None:
    ids = list(range(20, 40))
    (request,) = make(ids, truncate_prompt_tokens=truncate)
    assert request.output.prompt_token_ids == ids[-kept:]


@pytest.mark.parametrize("truncate", [None, 100])
def test_a_prompt_is_not_cut_unless_asked(truncate: int | None) -> None:
    with pytest.raises(ValueError, match=r"^the prompt has 20 tokens, and max_seq_len 16 must"):
        make(list(range(20, 40)), truncate_prompt_tokens=truncate)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([[5], [5, 300]], "prompt 1 has token id 300 at position 1, outside the vocabulary of 300"),
        ([-1], "the prompt has token id -1 at position 0, outside the vocabulary of 300"),
        ([5] * 16, "the prompt has 16 tokens, and max_seq_len 16 must hold it and at least one more: "),
    ],
)
def test_prompts_that_cannot_work(inputs: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        make(inputs)
    assert str(caught.value).startswith(message)


def test_a_text_with_a_lone_surrogate(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        make("a\ud800", tokenizer)


# ---------------------------------------------------------------------------------------------- parameters of choice


def test_every_parameter_of_choice_reaches_the_engine() -> None:
    given: dict[str, Any] = {
        "min_p": 0.25,
        "repetition_penalty": 1.5,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.75,
        "min_tokens": 3,
        "allowed_token_ids": [5, 6],
        "logit_bias": {7: -1.0},
    }
    (request,) = make([5], **given)
    (native,) = request.native_requests
    expected = {**given, "allowed_token_ids": (5, 6)}
    assert {name: getattr(native, name) for name in given} == expected


def test_a_repetition_penalty_too_small_for_float32_is_the_smallest() -> None:
    assert make([5], repetition_penalty=1e-60)[0].native_requests[0].repetition_penalty == 2.0**-126


@pytest.mark.parametrize(("logprobs", "asked"), [(None, -1), (0, 0), (4, 4), (300, 300), (2**31 - 1, 300), (-1, 300)])
def test_logprobs(logprobs: int | None, asked: int) -> None:
    assert make([5], logprobs=logprobs)[0].native_requests[0].num_logprobs == asked


@pytest.mark.parametrize(
    ("params", "stop_token_ids", "ignore_eos"),
    [
        ({}, (), False),
        ({"end_id": 9}, (9,), True),
        ({"end_id": 9, "stop_token_ids": [8, 9, 8]}, (8, 9), True),
        ({"end_id": 9, "stop_token_ids": [8], "ignore_eos": True}, (8,), True),
    ],
)
def test_an_end_id_takes_the_place_of_the_engines(
    params: dict[str, Any], stop_token_ids: tuple[int, ...], ignore_eos: bool
) -> None:
    (native,) = make([5], **params)[0].native_requests
    assert (native.stop_token_ids, native.ignore_eos) == (stop_token_ids, ignore_eos)


def test_bad_words_are_spelled_at_the_start_and_after_a_space(tokenizer: Tokenizer) -> None:
    (native,) = make([5], tokenizer, bad_words=["the", " at"])[0].native_requests
    assert native.bad_words == [tuple(tokenizer.encode(text)) for text in ("the", " the", "at", " at")]
    assert len(native.bad_words[2]) != len(native.bad_words[3])  # vLLM would leave the last one out


def test_a_word_is_spelled_once_where_the_space_changes_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tokenizer")
    backend = byte_fallback()
    backend.normalizer = None
    backend.save(str(folder / "tokenizer.json"))
    (native,) = make([5], Tokenizer(folder), bad="cat")[0].native_requests
    assert native.bad_words[0] == tuple(backend.encode("cat").ids)
    assert len(set(native.bad_words)) == len(native.bad_words)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"stop": "x"}, "stop must be None when skip_tokenizer_init is set, got ('x',)"),
        ({"bad_words": ["x"]}, "bad_words must be None when skip_tokenizer_init is set, got ['x']"),
        ({"bad": "x"}, "bad_words must be None when skip_tokenizer_init is set, got ['x']"),
        ({"allowed_token_ids": [5, 300]}, "allowed_token_ids must be in the vocabulary of 300, got 300"),
        ({"logit_bias": {5: 1, 301: 1}}, "logit_bias must be in the vocabulary of 300, got 301"),
    ],
)
def test_parameters_that_this_engine_cannot_follow(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        make([5], **params)
    assert str(caught.value) == message


# --------------------------------------------------------------------------------------------------- other settings


def test_settings_reach_the_engine() -> None:
    retention = KvCacheRetentionConfig(
        [
            TokenRangeRetentionConfig(0, 2, 80, timedelta(milliseconds=1.5)),
            KvCacheRetentionConfig.TokenRangeRetentionConfig(2, None, 50),
        ],
        decode_retention_priority=10,
    )
    before_ns = time.monotonic_ns()
    (request,) = make([5, 6, 7], settings=RequestSettings(0.75, "Grüße", retention, 1.5))
    (native,) = request.native_requests
    assert (native.priority, native.cache_salt) == (0.75, "Grüße".encode())
    assert native.retention == [Retention(0, 2, 80, 1_500_000), Retention(2, 0, 50), Retention(3, 0, 10)]
    assert 0 <= native.deadline_ns - before_ns - 1.5e9 < 1e9


def test_nothing_is_set_by_default() -> None:
    (native,) = make([5])[0].native_requests
    assert (native.priority, native.cache_salt, native.retention, native.deadline_ns) == (0.5, b"", (), 0)


def test_a_prompt_may_bring_its_salt() -> None:
    requests = make([{"prompt_token_ids": [5], "cache_salt": "a"}, [5]])
    assert [request.native_requests[0].cache_salt for request in requests] == [b"a", b""]
    make({"prompt_token_ids": [5], "cache_salt": "a"}, settings=RequestSettings(cache_salt="a"))
    with pytest.raises(ValueError, match="cache_salt is 'b', and the prompt has 'a': give one of them"):
        make({"prompt_token_ids": [5], "cache_salt": "a"}, settings=RequestSettings(cache_salt="b"))


def test_settings_are_one_for_all_or_one_each() -> None:
    assert make_settings(2, 0.5, "salt", None, [1, None]) == [
        RequestSettings(cache_salt="salt", timeout_s=1),
        RequestSettings(cache_salt="salt"),
    ]
    with pytest.raises(ValueError, match=r"^3 priority for 2 prompts: give one for all, or one each$"):
        make_settings(2, [0.1, 0.2, 0.3], None, None, None)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"priority": 1.5}, ValueError, "priority must be in [0, 1], got 1.5"),
        ({"priority": float("nan")}, ValueError, "priority must be in [0, 1], got nan"),
        ({"priority": "high"}, TypeError, "priority must be a number, got 'high'"),
        ({"cache_salt": b"x"}, TypeError, "cache_salt must be a str or None, got b'x'"),
        ({"cache_salt": ""}, ValueError, "cache_salt must not be empty; leave it out for none"),
        ({"timeout_s": 0}, ValueError, "timeout_s must be above 0 and finite, got 0"),
        ({"timeout_s": float("inf")}, ValueError, "timeout_s must be above 0 and finite, got inf"),
        (
            {"kv_cache_retention_config": 5},
            TypeError,
            "kv_cache_retention_config must be a KvCacheRetentionConfig or None, got 5",
        ),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        RequestSettings(**settings)
    assert str(caught.value) == message


# ---------------------------------------------------------------------------------------------------- preprocessing


def test_what_was_preprocessed_gives_the_same_request(tokenizer: Tokenizer) -> None:
    maker = RequestMaker(tokenizer, INFO, iter(range(9)))
    params = SamplingParams(truncate_prompt_tokens=2, seed=3)
    (preprocessed,) = maker.preprocess(to_prompts({"prompt": "the the cat", "cache_salt": "a"}), [params])
    assert preprocessed.prompt_token_ids == tokenizer.encode("the the cat")[-2:]
    assert (preprocessed.prompt, preprocessed.cache_salt) == ("the the cat", "a")
    assert (preprocessed.query_token_ids, preprocessed.multimodal_params) == (None, None)
    (from_it,) = maker.make(to_prompts(preprocessed), [params])
    (directly,) = maker.make(to_prompts({"prompt": "the the cat", "cache_salt": "a"}), [params])
    assert from_it.native_requests == directly.native_requests
    assert from_it.prompt == directly.prompt == "the the cat"
