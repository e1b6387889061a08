"""Stop strings in a text that comes in pieces: what is found, and what is given out when."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precast.stop_strings import StopStringMatcher


def search(pieces: Sequence[str], stops: Sequence[str], *, include: bool, first_piece: int) -> tuple[str, str | None]:
    """The definition, without any cleverness: after each piece, all ends in that piece and all stop strings."""
    text = ""
    for number, piece in enumerate(pieces):
        before, text = len(text), text + piece
        found = [
            (start, len(stop), stop)
            for stop in stops
            for start in range(len(text))
            if text.startswith(stop, start) and start + len(stop) > before
        ]
        if found and number >= first_piece:
            start, length, stop = min(found)
            return text[: start + length * include], stop
    return text, None


def may_begin(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of ``text`` may become part of a stop string."""
    return max((size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0)


ALPHABET = "ab東"
TEXTS = st.text(ALPHABET, max_size=6)
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=5), min_size=1, max_size=4)


@given(pieces=st.lists(TEXTS, max_size=12), stops=STOPS, include=st.booleans(), first_piece=st.integers(0, 4))
@settings(max_examples=1000, deadline=None)
def test_it_finds_what_a_search_of_the_whole_text_finds(
    pieces: list[str], stops: list[str], include: bool, first_piece: int
) -> None:
    expected_text, expected_stop = search(pieces, stops, include=include, first_piece=first_piece)
    matcher = StopStringMatcher(stops, include=include)
    shown, text = "", ""
    for number, piece in enumerate(pieces):
        text += piece
        shown += matcher.push(piece, may_stop=number >= first_piece)
        assert expected_text.startswith(shown)  # never more than stays
        if matcher.found is not None:
            break
        assert len(text) - len(shown) == may_begin(text, stops)  # and never less than is certain
    assert shown + matcher.finish() == expected_text
    assert matcher.found == expected_stop


@pytest.mark.parametrize(
    ("stops", "text", "before", "stop"),
    [
        (["b"], "abc", "a", "b"),
        (["bc", "ab"], "xabc", "x", "ab"),  # begins first
        (["ab", "abc"], "xabc", "x", "ab"),  # begin together: the shorter
        (["abc", "ab"], "xabc", "x", "ab"),  # whichever was named first
        (["bc", "abcd"], "abcd", "", "abcd"),  # one piece: the one that begins first, though the other ends first
        (["aab"], "aaab", "a", "aab"),
        (["abab"], "abaabab", "aba", "abab"),
        (["東京"], "x東京", "x", "東京"),
        (["\n\n"], "a\n\nb", "a", "\n\n"),
    ],
)
def test_which_one_counts_in_one_piece(stops: list[str], text: str, before: str, stop: str) -> None:
    matcher = StopStringMatcher(stops)
    assert (matcher.push(text), matcher.found) == (before, stop)


def test_of_two_that_overlap_the_one_that_is_complete_after_a_piece_counts() -> None:
    matcher = StopStringMatcher(["bc", "abcd"])
    shown = [matcher.push(piece) for piece in "xabcd"]
    assert (shown, matcher.found) == (["x", "", "", "a", ""], "bc")


def test_what_may_become_a_stop_string_is_held_back_and_given_out_when_it_does_not() -> None:
    matcher = StopStringMatcher(["STOP"])
    assert [matcher.push(piece) for piece in ["a S", "T", "O", "Sx", "ST"]] == ["a ", "", "", "STOSx", ""]
    assert matcher.finish() == "ST"


def test_it_may_be_included() -> None:
    matcher = StopStringMatcher(["ST"], include=True)
    assert matcher.push("aS") + matcher.push("Tb") == "aST"


def test_nothing_comes_after_it() -> None:
    matcher = StopStringMatcher(["b"])
    assert matcher.push("abc") == "a"
    assert matcher.push("more") == ""
    assert matcher.finish() == ""


def test_each_character_costs_the_same_however_long_the_stop_strings() -> None:
    """A text that begins a long stop string again and again makes naive searches compare all of it for each piece."""
    size = 20_000
    matcher = StopStringMatcher(["a" * size + "b", *(f"{i}" * 50 for i in range(10))])
    counted = 0
    real_next = matcher._next

    def counting(node: int, character: str) -> int:
        nonlocal counted
        counted += 1
        return real_next(node, character)

    matcher._next = counting  # type: ignore[method-assign]
    for _ in range(2 * size):
        matcher.push("a")
    assert counted == 2 * size
    assert matcher.push("b") == "" and matcher.found is not None  # noqa: PT018
