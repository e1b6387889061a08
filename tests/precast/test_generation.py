"""From the engine's events to outputs, without an engine."""

from typing import Any

import pytest

from precast import Logprob
from precast.runtime import ErrorCode, Event, FinishReason, NativeError, TokenLogprob
from precast.tokenizer import Tokenizer
from tests.precast.fake_engine import attach, finished, make, one_of, result_of, token
from tests.precast.tiny_tokenizers import BOS_ID, EOS_ID, TOKENIZERS

THE, CAT = (TOKENIZERS["byte_level"].encode(word).ids for word in ("the", " cat"))


def test_tokens_become_ids_and_text(tokenizer: Tokenizer) -> None:
    (request,) = make("the", tokenizer, streaming=True)
    (handle,) = attach(request)
    seen = []
    events: list[Event] = [token(CAT[0], 30), token(CAT[0], 70), finished(FinishReason.LENGTH)]
    for event in events:
        handle.receive(event)
        output, version = request.look(None)
        (completion,) = output.outputs
        seen.append((completion.text, completion.token_ids, completion.finish_reason, output.finished, version))
    assert seen == [
        (" cat", [CAT[0]], None, False, 1),
        (" cat cat", [CAT[0]] * 2, None, False, 2),
        (" cat cat", [CAT[0]] * 2, "length", True, 3),
    ]
    assert (output.metrics.first_token_ns, output.metrics.last_token_ns) == (30, 70)


def test_without_streaming_only_the_end_is_a_change(tokenizer: Tokenizer) -> None:
    (request,) = make("the", tokenizer)
    (handle,) = attach(request)
    handle.receive(token(CAT[0]))
    assert (request.version, request.done) == (0, False)
    handle.receive(finished())
    assert (request.version, request.done) == (1, True)


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
    events: list[Event] = [token(THE[0], 1), token(stop_token_id, 2), stopped]
    completion = one_of(request, events)
    assert completion.text == "the"
    assert completion.token_ids == [THE[0], stop_token_id]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop_reason)


def test_an_ignored_end_of_text_is_a_token_like_others(tokenizer: Tokenizer) -> None:
    (request,) = make("the", tokenizer, ignore_eos=True, skip_special_tokens=False)
    events: list[Event] = [token(EOS_ID, 1), token(CAT[0], 2), finished(FinishReason.LENGTH)]
    assert one_of(request, events).text == "</s> cat"


def test_special_tokens_are_left_out_of_the_text_by_default(tokenizer: Tokenizer) -> None:
    (request,) = make("the", tokenizer)
    events: list[Event] = [token(BOS_ID, 1), token(CAT[0], 2), finished(FinishReason.LENGTH)]
    assert one_of(request, events).text == " cat"


def test_detokenize_off_leaves_the_text_empty(tokenizer: Tokenizer) -> None:
    (request,) = make("the", tokenizer, detokenize=False)
    completion = one_of(request, [token(CAT[0], 1), finished(FinishReason.LENGTH)])
    assert (completion.text, completion.token_ids) == ("", CAT)


def test_an_incomplete_character_is_shown_at_the_end(tokenizer: Tokenizer) -> None:
    (request,) = make("the", tokenizer)
    first_byte = tokenizer.encode("🙂")[0]
    completion = one_of(request, [token(first_byte, 1), finished(FinishReason.LENGTH)])
    assert completion.text == "\N{REPLACEMENT CHARACTER}"


def test_each_of_n_outputs_gets_its_own_events(tokenizer: Tokenizer) -> None:
    (request,) = make("the", tokenizer, n=2)
    output = result_of(
        request,
        [token(CAT[0], 50), finished(FinishReason.LENGTH)],
        [token(THE[0], 20), token(THE[0], 60), finished(FinishReason.CANCELLED)],
    )
    assert [(c.index, c.text, c.finish_reason) for c in output.outputs] == [
        (0, " cat", "length"),
        (1, "thethe", "cancelled"),
    ]
    assert output.finished
    assert (output.metrics.first_token_ns, output.metrics.last_token_ns) == (20, 60)


def test_an_error_of_the_engine_is_raised_and_cancels_the_other_outputs() -> None:
    (request,) = make([5], n=2)
    handles = attach(request)
    handles[0].receive(token(6, 1))
    error = NativeError(ErrorCode.RESOURCE_EXHAUSTED, "no memory for a step")
    handles[0].receive(finished(FinishReason.ERROR, error=error))
    assert request.done
    assert handles[1].num_cancelled == 1
    handles[1].receive(finished(FinishReason.CANCELLED))
    for _ in range(2):
        with pytest.raises(NativeError, match="no memory for a step"):
            request.result()
    with pytest.raises(NativeError, match="no memory for a step"):
        request.look(None)
    assert request.output.outputs[0].token_ids == [6]
    assert not request.output.finished


def test_an_error_in_detokenizing_is_that_of_its_request(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dispatcher, which serves all requests, must not end."""
    (request,) = make("the", tokenizer)
    (handle,) = attach(request)

    def fail(token_id: int) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(request.completions[0].detokenizer, "push", fail)
    handle.receive(token(5))
    assert handle.num_cancelled == 1
    with pytest.raises(ZeroDivisionError):
        request.result()


def test_cancel_cancels_every_output_until_it_is_done() -> None:
    (request,) = make([5], n=2)
    handles = attach(request)
    request.cancel()
    assert [handle.num_cancelled for handle in handles] == [1, 1]
    for handle in handles:
        handle.receive(finished(FinishReason.CANCELLED))
    request.cancel()
    assert [handle.num_cancelled for handle in handles] == [1, 1]
    assert [completion.finish_reason for completion in request.result().outputs] == ["cancelled"] * 2


def test_a_timeout_is_a_reason() -> None:
    (request,) = make([5])
    completion = one_of(request, [token(6), finished(FinishReason.TIMEOUT)])
    assert (completion.token_ids, completion.finish_reason) == ([6], "timeout")


def test_what_the_cache_saved_is_what_no_output_computed() -> None:
    (request,) = make([5], n=2)
    output = result_of(
        request,
        [finished(num_cached_tokens=16, first_scheduled_ns=70)],
        [finished(num_cached_tokens=32, first_scheduled_ns=60)],
    )
    assert (output.num_cached_tokens, output.metrics.first_scheduled_ns) == (16, 60)


def test_the_cache_is_unknown_before_the_end() -> None:
    (request,) = make([5], streaming=True)
    (handle,) = attach(request)
    handle.receive(token(6))
    assert request.look(None)[0].num_cached_tokens is None


# ------------------------------------------------------------------------------------------------------ logprobs


def test_logprobs_become_one_dict_for_each_token(tokenizer: Tokenizer) -> None:
    events: list[Event] = [
        token(THE[0], 1, [TokenLogprob(THE[0], -1.5, 3), TokenLogprob(CAT[0], -0.25, 1), TokenLogprob(EOS_ID, -1, 2)]),
        token(CAT[0], 2, [TokenLogprob(CAT[0], -0.5, 1), TokenLogprob(CAT[0], -0.5, 1)]),
        finished(),
    ]
    completion = one_of(make("the", tokenizer, logprobs=2)[0], events)
    assert completion.logprobs == [
        {THE[0]: Logprob(-1.5, 3, "the"), CAT[0]: Logprob(-0.25, 1, " cat"), EOS_ID: Logprob(-1, 2, "</s>")},
        {CAT[0]: Logprob(-0.5, 1, " cat")},
    ]
    assert next(iter(completion.logprobs[0])) == THE[0]
    assert completion.cumulative_logprob == -2.0


def test_logprobs_without_a_tokenizer_have_no_text() -> None:
    completion = one_of(make([5], logprobs=0)[0], [token(6, 1, [TokenLogprob(6, -1.5, 3)]), finished()])
    assert completion.logprobs == [{6: Logprob(-1.5, 3, None)}]


def test_without_logprobs_there_are_none() -> None:
    completion = one_of(make([5])[0], [token(6), finished()])
    assert (completion.logprobs, completion.logprobs_diff, completion.cumulative_logprob) == (None, None, None)


# -------------------------------------------------------------------------------------------------------- diffs


def test_diffs_are_what_is_new_and_snapshots_stay(tokenizer: Tokenizer) -> None:
    (request,) = make("the", tokenizer, streaming=True, logprobs=0)
    (handle,) = attach(request)
    handle.receive(token(THE[0], 1, [TokenLogprob(THE[0], -1, 1)]))
    first, _ = request.look(None)
    handle.receive(token(CAT[0], 2, [TokenLogprob(CAT[0], -2, 1)]))
    second, _ = request.look(first)
    handle.receive(finished())
    third, _ = request.look(second)
    diffs = [(c.text_diff, c.token_ids_diff, c.logprobs_diff) for out in (first, second, third) for c in out.outputs]
    assert diffs == [
        ("the", THE, [{THE[0]: Logprob(-1, 1, "the")}]),
        (" cat", CAT, [{CAT[0]: Logprob(-2, 1, " cat")}]),
        ("", [], []),
    ]
    assert [out.outputs[0].text for out in (first, second, third)] == ["the", "the cat", "the cat"]
    assert [out.finished for out in (first, second, third)] == [False, False, True]
    (completion,) = request.result().outputs
    assert (completion.text_diff, completion.token_ids_diff) == ("the cat", [*THE, *CAT])
