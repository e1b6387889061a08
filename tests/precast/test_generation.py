"""From a prompt to what the engine is asked, and from its events to an output, without an engine."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from precast import RequestOutput, SamplingParams
from precast.generation import GeneratedRequest, make_requests
from precast.inputs import to_prompts
from precast.runtime import ErrorCode, Event, FinishedEvent, FinishReason, NativeError, TokenEvent
from precast.tokenizer import Tokenizer
from tests.precast.tiny_tokenizers import BOS_ID, EOS_ID, TOKENIZERS, byte_level

INFO = {"vocab_size": 300, "max_seq_len": 16, "eos_token_ids": [EOS_ID]}
THE, CAT = (TOKENIZERS["byte_level"].encode(word).ids for word in ("the", " cat"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level().save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


class FakeHandle:
    """A request of an engine that answers with given events."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._events = events
        self.num_cancelled = 0

    def events(self) -> Iterator[Event]:
        return iter(self._events)

    def cancel(self) -> bool:
        self.num_cancelled += 1
        return True


def make(inputs: Any, tokenizer: Tokenizer | None = None, **params: Any) -> list[GeneratedRequest]:
    prompts = to_prompts(inputs)
    sampling = [SamplingParams(**params)] * len(prompts)
    return make_requests(prompts, sampling, tokenizer=tokenizer, info=INFO, ids=itertools.count(10))


def finished(reason: FinishReason, stop_token_id: int | None = None, error: Exception | None = None) -> FinishedEvent:
    return FinishedEvent(reason, stop_token_id, 1, 1, 0, error)


def answer(request: GeneratedRequest, *events: Sequence[Event]) -> RequestOutput:
    """The output after the handles have given these events, one list for each of the n outputs."""
    request.handles = [FakeHandle(each) for each in events]  # type: ignore[misc]
    *_, output = request.stream()
    return output


# ------------------------------------------------------------------------------------------------- what is asked


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


# -------------------------------------------------------------------------------------------- what comes of events


def test_tokens_become_ids_and_text(tokenizer: Tokenizer) -> None:
    (request,) = make("the", tokenizer)
    request.handles = [
        FakeHandle([TokenEvent(CAT[0], 30), TokenEvent(CAT[0], 70), finished(FinishReason.LENGTH)])  # type: ignore[list-item]
    ]
    seen = [
        (output.outputs[0].text, list(output.outputs[0].token_ids), output.outputs[0].finish_reason, output.finished)
        for output in request.stream()
    ]
    assert seen == [
        (" cat", [CAT[0]], None, False),
        (" cat cat", [CAT[0]] * 2, None, False),
        (" cat cat", [CAT[0]] * 2, "length", True),
    ]
    assert request.output.metrics.first_token_ns == 30
    assert request.output.metrics.last_token_ns == 70


@pytest.mark.parametrize(
    ("params", "stop_token_id", "stop_reason"),
    [
        ({}, EOS_ID, None),
        ({"stop_token_ids": [CAT[0]]}, CAT[0], CAT[0]),
        ({"stop_token_ids": [EOS_ID]}, EOS_ID, EOS_ID),
        ({"stop_token_ids": [CAT[0]], "ignore_eos": True}, CAT[0], CAT[0]),
    ],
)
def test_a_stop_token_is_in_the_ids_and_not_in_the_text(
    tokenizer: Tokenizer, params: dict[str, Any], stop_token_id: int, stop_reason: int | None
) -> None:
    (request,) = make("the", tokenizer, skip_special_tokens=False, **params)
    stopped = finished(FinishReason.STOP, stop_token_id)
    events: list[Event] = [TokenEvent(THE[0], 1), TokenEvent(stop_token_id, 2), stopped]
    (completion,) = answer(request, events).outputs
    assert completion.text == "the"
    assert completion.token_ids == [THE[0], stop_token_id]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop_reason)


def test_an_ignored_end_of_text_is_a_token_like_others(tokenizer: Tokenizer) -> None:
    (request,) = make("the", tokenizer, ignore_eos=True, skip_special_tokens=False)
    events: list[Event] = [TokenEvent(EOS_ID, 1), TokenEvent(CAT[0], 2), finished(FinishReason.LENGTH)]
    assert answer(request, events).outputs[0].text == "</s> cat"


def test_special_tokens_are_left_out_of_the_text_by_default(tokenizer: Tokenizer) -> None:
    (request,) = make("the", tokenizer)
    events: list[Event] = [TokenEvent(BOS_ID, 1), TokenEvent(CAT[0], 2), finished(FinishReason.LENGTH)]
    assert answer(request, events).outputs[0].text == " cat"


def test_detokenize_off_leaves_the_text_empty(tokenizer: Tokenizer) -> None:
    (request,) = make("the", tokenizer, detokenize=False)
    (completion,) = answer(request, [TokenEvent(CAT[0], 1), finished(FinishReason.LENGTH)]).outputs
    assert (completion.text, completion.token_ids) == ("", CAT)


def test_an_incomplete_character_is_shown_at_the_end(tokenizer: Tokenizer) -> None:
    (request,) = make("the", tokenizer)
    first_byte = tokenizer.encode("🙂")[0]
    (completion,) = answer(request, [TokenEvent(first_byte, 1), finished(FinishReason.LENGTH)]).outputs
    assert completion.text == "\N{REPLACEMENT CHARACTER}"


def test_each_of_n_outputs_gets_its_own_events(tokenizer: Tokenizer) -> None:
    (request,) = make("the", tokenizer, n=2)
    output = answer(
        request,
        [TokenEvent(CAT[0], 50), finished(FinishReason.LENGTH)],
        [TokenEvent(THE[0], 20), TokenEvent(THE[0], 60), finished(FinishReason.CANCELLED)],
    )
    assert [(c.index, c.text, c.finish_reason) for c in output.outputs] == [
        (0, " cat", "length"),
        (1, "thethe", "cancelled"),
    ]
    assert output.finished
    assert (output.metrics.first_token_ns, output.metrics.last_token_ns) == (20, 60)


def test_an_error_of_the_engine_is_raised() -> None:
    (request,) = make([5])
    error = NativeError(ErrorCode.RESOURCE_EXHAUSTED, "no memory for a step")
    with pytest.raises(NativeError, match="no memory for a step"):
        answer(request, [TokenEvent(6, 1), finished(FinishReason.ERROR, error=error)])
    assert request.output.outputs[0].token_ids == [6]
    assert not request.output.finished


def test_cancel_cancels_every_output() -> None:
    (request,) = make([5], n=2)
    handles = [FakeHandle([]), FakeHandle([])]
    request.handles = handles  # type: ignore[assignment]
    request.cancel()
    assert [handle.num_cancelled for handle in handles] == [1, 1]
