"""Training documents as one stream of tokens, and the windows drawn from it.

Shape suffixes: B windows per step, W tokens per window, T tokens of the stream, P paragraphs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tokenizer import BOS_ID, EOS_ID
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class TokenStream:
    """The training documents, one after another, each between bos and eos."""

    tokens_T: Tensor  # int64
    starts_P: Tensor  # int64; index of the first token of every paragraph: the places where a window may start


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> list[Tensor]:
    """Token ids of every text, each followed by eos; without bos, which every window brings. int64, one per text."""
    return [torch.tensor([*tokenizer.encode(text, add_special_tokens=False).ids, EOS_ID]) for text in texts]


def encode_stream(tokenizer: Tokenizer, texts: Iterable[str]) -> TokenStream:
    tokens: list[int] = []
    starts: list[int] = []
    for text in texts:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        tokens.append(BOS_ID)
        starts += [len(tokens) + index for index in paragraph_starts(text, encoding.offsets)]
        tokens += [*encoding.ids, EOS_ID]
    return TokenStream(torch.tensor(tokens), torch.tensor(starts))


def paragraph_starts(text: str, offsets: list[tuple[int, int]]) -> list[int]:
    """Indices of the tokens where `text` or a paragraph without indentation begins.

    `offsets` holds each token's (begin, end) in characters.
    """
    return [index for index, (begin, _) in enumerate(offsets) if begin == 0 or text.endswith("\n\n", 0, begin)]


def draw_windows(
    stream: TokenStream, num_windows: int, window_tokens: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Inputs and targets, int64 [B, W]: `num_windows` of `window_tokens` each.

    Every window is bos and then the text from a random paragraph on, so bos means "a text starts here,
    whole or from the middle", which is what a prompt is.
    """
    picks_B = torch.randint(len(stream.starts_P), (num_windows,), generator=generator)
    positions_BW = stream.starts_P[picks_B, None] + torch.arange(window_tokens)
    targets_BW = stream.tokens_T[positions_BW % len(stream.tokens_T)]
    inputs_BW = functional.pad(targets_BW[:, :-1], (1, 0), value=BOS_ID)
    return inputs_BW, targets_BW
