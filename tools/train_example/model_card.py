"""The example checkpoint's model card: README.md, made from measured figures only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from recipe import Recipe


@dataclass(frozen=True)
class Sample:
    """One continuation by the checkpoint; `text` begins with `prompt`."""

    prompt: str
    greedy: bool
    text: str


@dataclass(frozen=True)
class Figures:
    """What was measured on the written checkpoint. Perplexities are per token."""

    num_parameters: int
    held_out_perplexity: float
    training_perplexity: float
    held_out_tokens: int
    training_tokens: int
    held_out_topics: tuple[str, ...]
    num_training_topics: int
    training_minutes: float
    versions: Mapping[str, str]
    samples: tuple[Sample, ...]


def render(figures: Figures, recipe: Recipe) -> str:
    """The card as Markdown, with the metadata block that Hugging Face's hub reads."""
    sections = (
        _HEADER,
        _data(figures, recipe),
        _architecture(figures, recipe),
        _training(figures, recipe),
        _quality(figures, recipe),
        _LIMITS,
    )
    return "\n\n".join(section.strip("\n") for section in sections) + "\n"


_HEADER = """
---
license: other
license_name: psf-2.0
license_link: https://docs.python.org/3/license.html
language: en
library_name: transformers
pipeline_tag: text-generation
---

# pydoc-llama

A small Llama trained on the documentation topics that Python's standard library carries (`pydoc_data.topics`, the
text behind `help("import")`). It is a real model, with a real tokenizer and real perplexity, that needs no model hub:
Precast's examples and tests build and run it. It is not an assistant and knows nothing but Python's reference manual.

This file is written by `tools/train_example/train.py`; every figure in it was measured on the files beside it.
"""

_LIMITS = """
## Limits

- It continues text in the manner of the documentation. What it says about Python is often false.
- No chat template, no instructions, English only. Text unlike the documentation is tokenised badly (mostly bytes).
- It has learnt parts of its small training text by heart, as the two perplexities show.
- Positions beyond `max_position_embeddings` were never trained.
"""


def _data(figures: Figures, recipe: Recipe) -> str:
    held_out = ", ".join(f"`{name}`" for name in figures.held_out_topics)
    return f"""
## Data and licence

The topics of Python {figures.versions["Python"]}, copyright Python Software Foundation, under the PSF License
Version 2 (https://docs.python.org/3/license.html; the code examples in it also under the Zero-Clause BSD licence).
The weights and the tokenizer derive from that text; the licence is noted here for that reason.

| | topics | tokens |
|---|---:|---:|
| training | {figures.num_training_topics} | {figures.training_tokens:,} |
| held out | {len(figures.held_out_topics)} | {figures.held_out_tokens:,} |

Every {recipe.hold_out_every}th topic in alphabetical order, from the first on, is held out: {held_out}.
Topics that repeat another word for word are dropped, and paragraphs that occur in a held-out topic are removed from
the training topics, because the topics overlap."""


def _architecture(figures: Figures, recipe: Recipe) -> str:
    return f"""
## Architecture

| `LlamaForCausalLM` | |
|---|---:|
| parameters | {figures.num_parameters:,} |
| layers | {recipe.num_layers} |
| hidden size | {recipe.hidden_size} |
| intermediate size | {recipe.intermediate_size} |
| attention heads | {recipe.num_heads} |
| key-value heads | {recipe.num_kv_heads} |
| head dimension | {recipe.head_dim} |
| maximum positions | {recipe.max_tokens} |
| rope theta | 10000 |
| vocabulary (byte-level BPE) | {recipe.vocab_size} |
| embeddings tied | yes |
| weights | bfloat16 |

The tokenizer puts `<|begin_of_text|>` (0) before a text; `<|end_of_text|>` (1) ends it."""


def _training(figures: Figures, recipe: Recipe) -> str:
    passes = recipe.num_steps * recipe.tokens_per_step / figures.training_tokens
    lengths = ", ".join(map(str, recipe.window_lengths))
    rate = (
        f"{recipe.warmup_steps} steps up to {recipe.peak_learning_rate:g}, "
        f"then cosine decay to {recipe.final_learning_rate:g}"
    )
    versions = ", ".join(f"{name} {version}" for name, version in figures.versions.items())
    return f"""
## Training

{recipe.num_steps} steps of {recipe.tokens_per_step} tokens, about {passes:.0f} passes over the text. A window is
`<|begin_of_text|>` and then the text from a random paragraph on; from step to step its length goes round
{lengths}.

| | |
|---|---|
| optimisers | Muon for the projections, AdamW for the embedding and the norms |
| learning rate | {rate} |
| weight decay | {recipe.weight_decay:g}, on matrices only |
| dropout | {recipe.dropout:g}, on the embedding and on what every layer adds to the residual stream |
| gradient norm | clipped at {recipe.max_grad_norm:g} |
| precision | fp32 weights, bfloat16 autocast |
| seed | {recipe.seed} |

It took {figures.training_minutes:.0f} minutes on {recipe.num_threads} CPU threads.

    python tools/train_example/train.py --output examples/checkpoints/pydoc-llama

Made with {versions}. Other versions or another kind of CPU give other bits."""


def _quality(figures: Figures, recipe: Recipe) -> str:
    samples = "\n\n".join(_sample(sample) for sample in figures.samples)
    return f"""
## Quality

Perplexity per token, end-of-text included, in windows of {recipe.max_tokens} tokens that do not overlap; bfloat16
weights, fp32 arithmetic:

| | perplexity |
|---|---:|
| held-out topics | {figures.held_out_perplexity:.1f} |
| training topics | {figures.training_perplexity:.1f} |

The number of steps was chosen by looking at the held-out perplexity and at samples, so the first figure is slightly
flattering. Samples are as they came, each cut at the same number of new tokens (the sampled ones at temperature 0.7,
top-p 0.9):

{samples}"""


def _sample(sample: Sample) -> str:
    kind = "Greedy" if sample.greedy else "Sampled"
    return f'{kind}, prompt "{sample.prompt}":\n\n```text\n{sample.text.rstrip()}\n```'
