"""From tokens to a text that a stop string ends, compared with decoding and searching the whole text each time."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from precast import CompletionOutput
from precast.completion import Completion
from precast.detokenizer import IncrementalDetokenizer
from precast.runtime import EngineRequest
from precast.stop_strings import StopStringMatcher
from tests.precast.fake_engine import finished, token
from tests.precast.tiny_tokenizers import TOKENIZERS, crossing

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
ALL_TOKENIZERS = {**TOKENIZERS, "crossing": crossing()}
ALPHABET = "abc 東京é🙂"


def search_all(
    tokenizer: tokenizers.Tokenizer, prompt: list[int], ids: list[int], stops: list[str], min_tokens: int
) -> tuple[str, int, str | None]:
    """The text, how many tokens it took, and the stop string: after every token, everything is decoded and searched."""
    start, text = len(tokenizer.decode(prompt)), ""
    for count in range(1, len(ids) + 1):
        before = len(text)
        text = max(text, tokenizer.decode(prompt + ids[:count]).rstrip(REPLACEMENT)[start:], key=len)
        found = [
            (at, len(stop), stop)
            for stop in stops
            for at in range(len(text))
            if text.startswith(stop, at) and at + len(stop) > before
        ]
        if found and count > min_tokens:
            at, _, stop = min(found)
            return text[:at], count, stop
    return text, len(ids), None


@pytest.mark.parametrize("tokenizer", ALL_TOKENIZERS.values(), ids=ALL_TOKENIZERS.keys())
@given(
    text=st.text(ALPHABET, min_size=1, max_size=20),
    stops=st.lists(st.text(ALPHABET, min_size=1, max_size=3), min_size=1, max_size=3),
    min_tokens=st.integers(0, 3),
)
@settings(max_examples=300, deadline=None)
def test_a_stop_string_is_found_at_the_token_that_completes_it(
    tokenizer: tokenizers.Tokenizer, text: str, stops: list[str], min_tokens: int
) -> None:
    prompt = tokenizer.encode("c").ids
    ids = tokenizer.encode("c" + text).ids[len(prompt) :]
    if tokenizer.encode("c" + text).ids[: len(prompt)] != prompt:
        return  # the first character of the text has become part of the prompt's token
    expected_text, expected_count, expected_stop = search_all(tokenizer, prompt, ids, stops, min_tokens)
    completion = Completion(
        CompletionOutput(0),
        EngineRequest(prompt),
        min_tokens=min_tokens,
        detokenizer=IncrementalDetokenizer(tokenizer.decode, prompt),
        stop_strings=StopStringMatcher(stops),
    )
    for token_id in ids:
        completion.accept_token(token(token_id))
        assert expected_text.startswith(completion.output.text)
        if completion.has_stopped():
            break
    completion.finish(finished())
    output = completion.output
    assert (output.text, output.length, output.stop_reason) == (expected_text, expected_count, expected_stop)
    assert output.finish_reason == ("length" if expected_stop is None else "stop")
