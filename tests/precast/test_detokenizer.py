"""Pieces of text, joined, are the text that follows the prompt, whichever way its bytes are spread over tokens."""

from collections.abc import Sequence

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from precast.detokenizer import IncrementalDetokenizer
from tests.precast.tiny_tokenizers import BOS_ID, EOS_ID, TOKENIZERS, crossing

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
FAMILY = "👨\N{ZERO WIDTH JOINER}👩\N{ZERO WIDTH JOINER}👧"
# Words with merges, spaces in all places, two to four bytes a character, and a real U+FFFD.
TEXTS = st.lists(
    st.sampled_from([*"abct .,\n", " the", " cat", "  ", "ü", "é", "東", "京", "🙂", FAMILY, REPLACEMENT]), min_size=1
).map("".join) | st.text(min_size=1)

each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())
CROSSING = crossing()


def pieces_of(tokenizer: tokenizers.Tokenizer, prompt: Sequence[int], output: Sequence[int]) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer.decode, prompt)
    return [*map(detokenizer.push, output), detokenizer.finish()]


@pytest.mark.parametrize("tokenizer", [*TOKENIZERS.values(), CROSSING], ids=[*TOKENIZERS, "crossing"])
@given(text=TEXTS, data=st.data(), with_bos=st.booleans())
@settings(deadline=None)
def test_pieces_joined_are_the_text_after_the_prompt(
    tokenizer: tokenizers.Tokenizer, text: str, data: st.DataObject, with_bos: bool
) -> None:
    ids = [BOS_ID] * with_bos + tokenizer.encode(text).ids
    cut = data.draw(st.integers(1, len(ids)))
    prompt, whole = tokenizer.decode(ids[:cut]), tokenizer.decode(ids)
    # Where the prompt ends within a character, "the text after the prompt" means nothing.
    if not whole.startswith(prompt) or prompt.endswith(REPLACEMENT):
        return
    assert "".join(pieces_of(tokenizer, ids[:cut], ids[cut:])) == whole[len(prompt) :]


@each_tokenizer
@given(ids=st.lists(st.integers(0, 260), max_size=50))
@settings(deadline=None)
def test_text_comes_again_after_tokens_that_are_no_text(tokenizer: tokenizers.Tokenizer, ids: list[int]) -> None:
    """A model may draw any tokens, also bytes that are no UTF-8."""
    words = tokenizer.encode("x the cat").ids[-2:]
    assert "".join(pieces_of(tokenizer, [BOS_ID], [*ids, *words])).endswith(" cat")


@each_tokenizer
@pytest.mark.parametrize("character", ["ü", "東", "🙂"])
def test_a_character_comes_when_it_is_whole(tokenizer: tokenizers.Tokenizer, character: str) -> None:
    prompt, output = tokenizer.encode("a").ids, tokenizer.encode(f"a{character}").ids[-len(character.encode()) :]
    pieces = pieces_of(tokenizer, prompt, output)
    assert [piece for piece in pieces if piece] == [character]
    assert pieces.index(character) == len(output) - 1


def test_what_lies_before_an_incomplete_character_comes_at_once() -> None:
    """As with tokens that hold a word and the first byte of the next character."""
    ids = CROSSING.encode("ca東b").ids
    mixed = next(i for i in ids if CROSSING.decode([i]).startswith("a") and REPLACEMENT in CROSSING.decode([i]))
    prompt, output = ids[: ids.index(mixed)], ids[ids.index(mixed) :]
    pieces = pieces_of(CROSSING, prompt, output)
    assert pieces[0] == "a"
    assert "".join(pieces) == "a東b"


@given(text=st.text("abc東京é🙂", min_size=1), data=st.data())
@settings(max_examples=300, deadline=None)
def test_nothing_that_is_certain_waits(text: str, data: st.DataObject) -> None:
    ids = CROSSING.encode(text).ids
    cut = data.draw(st.integers(0, len(ids) - 1))
    prompt = CROSSING.decode(ids[:cut])
    if prompt.endswith(REPLACEMENT):
        return
    detokenizer = IncrementalDetokenizer(CROSSING.decode, ids[:cut])
    shown = ""
    for end in range(cut + 1, len(ids) + 1):
        shown += detokenizer.push(ids[end - 1])
        assert prompt + shown == CROSSING.decode(ids[:end]).rstrip(REPLACEMENT)


@each_tokenizer
def test_finish_shows_an_incomplete_character(tokenizer: tokenizers.Tokenizer) -> None:
    *output, _ = tokenizer.encode("the🙂").ids
    prompt, output = output[:1], output[1:]
    detokenizer = IncrementalDetokenizer(tokenizer.decode, prompt)
    shown = "".join(map(detokenizer.push, output))
    assert REPLACEMENT not in shown
    assert set(detokenizer.finish()) == {REPLACEMENT}
    assert detokenizer.finish() == ""


@each_tokenizer
def test_a_prompt_that_ends_within_a_character(tokenizer: tokenizers.Tokenizer) -> None:
    """As where an earlier output, cut by max_tokens, is continued: the character belongs to the output."""
    ids = tokenizer.encode("a🙂🙂b").ids
    cut = len(ids) - 2
    assert tokenizer.decode(ids[:cut]).endswith(REPLACEMENT)
    assert "".join(pieces_of(tokenizer, ids[:cut], ids[cut:])) == "🙂b"


def test_the_window_does_not_begin_within_a_character() -> None:
    """Byte fallback decodes a run of bytes as a whole: one that begins within a character spoils all of it."""
    tokenizer = TOKENIZERS["byte_fallback"]
    ids = tokenizer.encode("🙂🙂🙂🙂").ids
    assert "".join(pieces_of(tokenizer, ids[:-4], ids[-4:])) == "🙂"


def test_a_space_before_the_first_word_of_the_output_is_kept() -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    ids = tokenizer.encode("the cat").ids
    assert pieces_of(tokenizer, ids[:1], ids[1:]) == [" cat", ""]


@each_tokenizer
def test_special_tokens_show_nothing_and_hide_nothing(tokenizer: tokenizers.Tokenizer) -> None:
    word = tokenizer.encode("a the").ids[-1]
    assert (
        "".join(pieces_of(tokenizer, [BOS_ID, word], [EOS_ID, word, EOS_ID]))
        == tokenizer.decode([word, word])[len(tokenizer.decode([word])) :]
    )


@each_tokenizer
@pytest.mark.parametrize("endless", ["</s>", "invalid"])
def test_an_endless_run_without_a_text_costs_no_more_than_others(tokenizer: tokenizers.Tokenizer, endless: str) -> None:
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return tokenizer.decode(ids)

    # The first byte of a character, again and again.
    token_id = EOS_ID if endless == "</s>" else tokenizer.encode("🙂").ids[-4]
    detokenizer = IncrementalDetokenizer(decode, tokenizer.encode("the").ids)
    for _ in range(500):
        detokenizer.push(token_id)
    assert longest < 200
    assert detokenizer.push(tokenizer.encode("x").ids[-1]).endswith("x")
