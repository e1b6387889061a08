"""Stop strings of a request: its text, its tokens, and that the engine hears of it."""

from collections.abc import Sequence
from typing import Any

import pytest

from precast.detokenizer import IncrementalDetokenizer
from precast.runtime import ErrorCode, Event, FinishReason, NativeError
from precast.tokenizer import Tokenizer
from tests.precast.fake_engine import attach, finished, make, one_of, token
from tests.precast.tiny_tokenizers import EOS_ID, TOKENIZERS

THE, CAT = (TOKENIZERS["byte_level"].encode(word).ids for word in ("the", " cat"))


def ids_of(*words: str) -> list[int]:
    return [token_id for word in words for token_id in TOKENIZERS["byte_level"].encode(word).ids]


def tokens_of(ids: Sequence[int]) -> list[Event]:
    return [token(token_id) for token_id in ids]


@pytest.mark.parametrize(
    ("stop", "text", "reason"),
    [
        ("t s", " ca", "t s"),  # over two tokens, from the middle of one to the middle of the next
        (" sat", " cat", " sat"),
        (["mat", "cat"], " ", "cat"),
        ("at", " c", "at"),
    ],
)
def test_a_stop_string_ends_the_text(tokenizer: Tokenizer, stop: Any, text: str, reason: str) -> None:
    ids = ids_of(" cat", " sat", " on")
    (request,) = make("the", tokenizer, stop=stop)
    (handle,) = attach(request)
    completion = request.output.outputs[0]
    taken: list[int] = []
    for token_id in ids:
        handle.receive(token(token_id))
        if handle.num_cancelled and not taken:
            taken = list(completion.token_ids)
    assert handle.num_cancelled == 1
    handle.receive(finished(FinishReason.CANCELLED))
    assert (completion.text, completion.finish_reason, completion.stop_reason) == (text, "stop", reason)
    assert completion.token_ids == taken == ids[: len(taken)]  # up to the token that completed it
    whole = tokenizer.decode(ids_of("the") + taken)[3:]
    assert reason in whole
    assert reason not in tokenizer.decode(ids_of("the") + taken[:-1])[3:]


def test_a_stop_string_may_be_included(tokenizer: Tokenizer) -> None:
    (request,) = make("the", tokenizer, stop="ca", include_stop_str_in_output=True)
    completion = one_of(request, [*tokens_of(CAT), finished(FinishReason.CANCELLED)])
    assert (completion.text, completion.stop_reason) == (" ca", "ca")


def test_so_may_a_stop_token(tokenizer: Tokenizer) -> None:
    events: list[Event] = [token(THE[0]), token(CAT[0]), finished(FinishReason.STOP, CAT[0])]
    (request,) = make("the", tokenizer, stop_token_ids=CAT, include_stop_str_in_output=True)
    assert one_of(request, events).text == "the cat"


@pytest.mark.parametrize("reason", [FinishReason.LENGTH, FinishReason.STOP, FinishReason.ERROR, FinishReason.TIMEOUT])
def test_a_stop_string_counts_whatever_ended_the_request_after_it(tokenizer: Tokenizer, reason: FinishReason) -> None:
    (request,) = make("the", tokenizer, stop="cat")
    error = NativeError(ErrorCode.INTERNAL, "late") if reason is FinishReason.ERROR else None
    completion = one_of(request, [*tokens_of(CAT), finished(reason, EOS_ID, error)])
    assert (completion.text, completion.finish_reason, completion.stop_reason) == (" ", "stop", "cat")


def test_a_stop_string_is_seen_before_the_character_that_its_token_begins(tokenizer: Tokenizer) -> None:
    """One token may hold the end of a word and the first byte of a character that is never completed."""

    def decode(ids: Sequence[int]) -> str:
        return "".join("x.\N{REPLACEMENT CHARACTER}" if i == 299 else "the" for i in ids)

    (request,) = make("the", tokenizer, stop="x.")
    completion = request.completions[0]
    completion.detokenizer = IncrementalDetokenizer(decode, THE)
    (handle,) = attach(request)
    handle.receive(token(299))
    assert handle.num_cancelled == 1


@pytest.mark.parametrize("stop", ["東", "🙂"])
def test_a_stop_string_of_several_tokens_a_character(tokenizer: Tokenizer, stop: str) -> None:
    ids = ids_of(" cat", f"a{stop}b")
    (request,) = make("the", tokenizer, stop=stop)
    completion = one_of(request, [*tokens_of(ids), finished(FinishReason.CANCELLED)])
    assert (completion.text, completion.stop_reason) == (" cata", stop)
    assert completion.token_ids == ids[:-1]


def test_what_may_become_a_stop_string_is_held_back(tokenizer: Tokenizer) -> None:
    (request,) = make("the", tokenizer, stop="cat sat on", streaming=True)
    (handle,) = attach(request)
    shown = []
    for event in [*tokens_of(ids_of(" cat", " sat", " cat")), finished()]:
        handle.receive(event)
        shown.append(request.look(None)[0].outputs[0].text)
    assert shown[0] == " "
    assert shown[-2:] == [" cat sat ", " cat sat cat"]


@pytest.mark.parametrize(("min_tokens", "num_tokens"), [(0, 1), (1, 2), (2, 3), (3, 4)])
def test_no_stop_string_ends_within_min_tokens(tokenizer: Tokenizer, min_tokens: int, num_tokens: int) -> None:
    (request,) = make("the", tokenizer, stop="cat", min_tokens=min_tokens)
    events = tokens_of(CAT * 5)
    (handle,) = attach(request)
    for event in [*events, finished(FinishReason.CANCELLED)]:
        handle.receive(event)
    completion = request.result().outputs[0]
    assert (completion.length, completion.text) == (num_tokens, " cat" * (num_tokens - 1) + " ")


def test_an_incomplete_character_may_hide_a_stop_string_until_the_end(tokenizer: Tokenizer) -> None:
    (request,) = make("the", tokenizer, stop="\N{REPLACEMENT CHARACTER}")
    completion = one_of(request, [token(tokenizer.encode("🙂")[0]), finished()])
    assert (completion.text, completion.finish_reason) == ("", "stop")
