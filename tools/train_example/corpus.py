"""The training text: Python's own documentation topics, split into training and held-out documents.

Standard library only, so that the split can be tested without torch or transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

MIN_SHARED_CHARS = 40
"""A paragraph shorter than this ("Note:", "Changed in version 3.8.") may occur on both sides of the split."""

WRAP_COLUMNS = 70
"""Where the topics' prose is wrapped: the width of Sphinx's text builder, which wrote them."""

_LIST_MARK = re.compile(r"\* +|\d+\. +")
_NOT_PROSE = re.compile(r" *(?:[|+]|>>>|([*=~^-])\1{2,}$|[\w.]+ +::=)")


@dataclass(frozen=True)
class Split:
    """Topic name -> normalised and unwrapped text, for both sides. No topic is on both sides."""

    training: Mapping[str, str]
    held_out: Mapping[str, str]

    def __post_init__(self) -> None:
        for side, texts in (("training", self.training), ("held-out", self.held_out)):
            if not texts:
                raise ValueError(f"the {side} side of the split is empty: give more topics")
        if both := self.training.keys() & self.held_out.keys():
            raise ValueError(f"topics on both sides of the split: {sorted(both)}")


def python_topics() -> dict[str, str]:
    """The topics of `help()` as this interpreter's standard library ships them: name -> plain text."""
    from pydoc_data.topics import topics

    return dict(topics)


def normalise(text: str) -> str:
    """Strips trailing blanks from every line and empty lines from both ends; ends with one newline."""
    return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n") + "\n"


def unwrap(text: str) -> str:
    """Joins the lines of wrapped prose, so that a line break means something and every word keeps its space.

    A break is taken for a wrap if and only if
    1. the next line starts where the text of this one does: at its indentation, behind a list mark if there is one;
    2. this line fits into `WRAP_COLUMNS`, and the next line's first word would not have fitted behind it; and
    3. neither line is a table's, a heading's underline, a grammar rule or interactive Python.
    """
    lines: list[str] = []
    last_line, text_column = "", 0  # of the paragraph so far: its last line as it stood, and where its text starts
    for line in text.split("\n"):
        if _is_wrapped(last_line, text_column, line):
            lines[-1] += " " + line.lstrip()
        else:
            lines.append(line)
            text_column = _text_column(line)
        last_line = line
    return "\n".join(lines)


def _is_wrapped(last_line: str, text_column: int, line: str) -> bool:
    if not last_line.strip() or not line.strip():
        return False
    if _NOT_PROSE.match(last_line) or _NOT_PROSE.match(line):
        return False
    indentation = len(line) - len(line.lstrip())
    first_word = line.split(maxsplit=1)[0]
    return indentation == text_column and len(last_line) <= WRAP_COLUMNS < len(last_line) + 1 + len(first_word)


def _text_column(line: str) -> int:
    indentation = len(line) - len(line.lstrip())
    mark = _LIST_MARK.match(line, indentation)
    return mark.end() if mark else indentation


def paragraphs(text: str) -> list[str]:
    """The parts of normalised `text` between empty lines, in order."""
    return [part for part in text.strip("\n").split("\n\n") if part]


def split_topics(topics: Mapping[str, str], hold_out_every: int) -> Split:
    """Holds out the 1st, (1 + `hold_out_every`)th, ... topic in alphabetical order.

    1. A topic whose text repeats an earlier topic's is dropped ("if" repeats "else").
    2. Topics overlap ("types" contains much of "typesseq"), so every paragraph of at least `MIN_SHARED_CHARS`
       characters that a held-out topic contains is removed from the training topics. Without this, held-out
       perplexity would be measured partly on text that the model was trained on.
    """
    if hold_out_every < 2:
        raise ValueError(f"hold_out_every is {hold_out_every}; it must be at least 2, or nothing is left to train on")
    unique = _without_repeats(topics)
    names = sorted(unique)
    held_out = {name: unique[name] for name in names[::hold_out_every]}
    reserved = {part for text in held_out.values() for part in paragraphs(text) if len(part) >= MIN_SHARED_CHARS}
    kept = {name: _without(reserved, unique[name]) for name in names if name not in held_out}
    return Split({name: text for name, text in kept.items() if text}, held_out)


def _without_repeats(topics: Mapping[str, str]) -> dict[str, str]:
    first_with_text: dict[str, str] = {}
    for name in sorted(topics):
        first_with_text.setdefault(unwrap(normalise(topics[name])), name)
    return {name: text for text, name in first_with_text.items()}


def _without(reserved: set[str], text: str) -> str:
    """`text` without the paragraphs in `reserved`; empty when nothing is left."""
    kept = [part for part in paragraphs(text) if part not in reserved]
    return "\n\n".join(kept) + "\n" if kept else ""
