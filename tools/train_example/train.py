"""Trains the example checkpoint `pydoc-llama`: a small Llama on Python's documentation topics.

    python tools/train_example/train.py --output examples/checkpoints/pydoc-llama

Needs torch, transformers and tokenizers, two CPU cores and minutes. Downloads nothing.

Shape suffixes: B windows per step, W tokens per window, T tokens of the stream, P paragraphs, V vocabulary.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
import transformers
from corpus import Split, python_topics, split_topics
from model_card import Figures, Sample, render
from recipe import Recipe
from tokenizer import BOS, EOS, save_tokenizer, train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PROMPTS = ("The import statement", "A class definition")
SAMPLE_TOKENS = 96


@dataclass(frozen=True)
class TokenStream:
    """The training documents, one after another, each between bos and eos."""

    tokens_T: Tensor  # int64
    starts_P: Tensor  # int64; index of the first token of every paragraph: the places where a window may start


def main() -> None:
    recipe, output = parse_arguments()
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.num_threads)
    split = split_topics(python_topics(), recipe.hold_out_every)
    tokenizer = train_tokenizer(split.training.values(), recipe.vocab_size)
    stream = encode_stream(tokenizer, split.training.values())
    model = new_model(tokenizer, recipe)

    started = time.monotonic()
    train(model, stream, recipe, held_out=encode_documents(tokenizer, split.held_out.values()))
    minutes = (time.monotonic() - started) / 60

    output.mkdir(parents=True, exist_ok=True)
    save_checkpoint(model, tokenizer, output, recipe)
    figures = measure(output, split, recipe, minutes)
    (output / "README.md").write_text(render(figures, recipe), encoding="utf-8")
    print(f"held-out perplexity {figures.held_out_perplexity:.1f}; checkpoint and model card are in {output}")


def parse_arguments() -> tuple[Recipe, Path]:
    parser = argparse.ArgumentParser(description="Trains the example checkpoint pydoc-llama.")
    parser.add_argument("--output", type=Path, required=True, help="directory to write the checkpoint to")
    parser.add_argument("--num-steps", type=int, default=Recipe.num_steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--num-threads", type=int, default=Recipe.num_threads)
    arguments = parser.parse_args()
    recipe = Recipe(num_steps=arguments.num_steps, seed=arguments.seed, num_threads=arguments.num_threads)
    return recipe, arguments.output


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> list[Tensor]:
    """Token ids of every text, each followed by eos; without bos, which every window brings. int64, one per text."""
    eos = tokenizer.token_to_id(EOS)
    return [torch.tensor([*tokenizer.encode(text, add_special_tokens=False).ids, eos]) for text in texts]


def encode_stream(tokenizer: Tokenizer, texts: Iterable[str]) -> TokenStream:
    tokens: list[int] = []
    starts: list[int] = []
    for text in texts:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        tokens.append(tokenizer.token_to_id(BOS))
        starts += [len(tokens) + index for index in paragraph_starts(text, encoding.offsets)]
        tokens += [*encoding.ids, tokenizer.token_to_id(EOS)]
    return TokenStream(torch.tensor(tokens), torch.tensor(starts))


def paragraph_starts(text: str, offsets: list[tuple[int, int]]) -> list[int]:
    """Indices of the tokens that begin `text` or follow an empty line; `offsets` are (begin, end) in characters."""
    return [i for i, (begin, _) in enumerate(offsets) if begin == 0 or text[:begin].rstrip(" ").endswith("\n\n")]


def new_model(tokenizer: Tokenizer, recipe: Recipe) -> LlamaForCausalLM:
    """A model of random weights in fp32, which drops activations behind every projection into the residual stream."""
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_kv_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=recipe.window_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
    )
    model = LlamaForCausalLM(config)

    def drop(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return functional.dropout(output, recipe.dropout, module.training)

    for name, module in model.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            module.register_forward_hook(drop)
    return model


def train(model: LlamaForCausalLM, stream: TokenStream, recipe: Recipe, held_out: list[Tensor]) -> None:
    """Linear warm-up, then cosine decay. Held-out perplexity is printed on the way and decides nothing."""
    windows = torch.Generator().manual_seed(recipe.seed)
    optimizers = new_optimizers(model, recipe)
    model.train()
    for step in range(recipe.num_steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, recipe)
        inputs_BW, targets_BW = draw_windows(stream, recipe, windows, bos=model.config.bos_token_id)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits_BWV = model(inputs_BW).logits
        loss = functional.cross_entropy(logits_BWV.float().flatten(0, 1), targets_BW.flatten())
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == recipe.num_steps:
            print(
                f"step {step + 1}/{recipe.num_steps}: training loss {loss.item():.3f}, "
                f"held-out perplexity {perplexity(model, held_out, recipe.window_tokens):.1f}",
                flush=True,
            )


def new_optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the projections, AdamW for the embedding and the norms; weight decay on matrices only.

    Muon learns about twice as much per step here, which is what matters on two cores.
    """
    embedding = model.get_input_embeddings().weight
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    projections = [p for p in model.parameters() if p.ndim == 2 and p is not embedding]
    adamw_groups = [{"params": [embedding], "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(
            projections,
            lr=recipe.peak_learning_rate,
            weight_decay=recipe.weight_decay,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(adamw_groups, lr=recipe.peak_learning_rate, betas=(0.9, 0.95)),
    ]


def learning_rate(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup_steps:
        return recipe.peak_learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / (recipe.num_steps - recipe.warmup_steps)
    span = recipe.peak_learning_rate - recipe.final_learning_rate
    return recipe.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * progress))


def draw_windows(
    stream: TokenStream, recipe: Recipe, generator: torch.Generator, bos: int
) -> tuple[Tensor, Tensor]:
    """Inputs and targets, int64 [B, W]. Every window is bos and then the text from a random paragraph on.

    So bos means "a text starts here, whole or from the middle", which is what a prompt is.
    """
    picks_B = torch.randint(len(stream.starts_P), (recipe.windows_per_step,), generator=generator)
    positions_BW = stream.starts_P[picks_B, None] + torch.arange(recipe.window_tokens)
    targets_BW = stream.tokens_T[positions_BW % len(stream.tokens_T)]
    inputs_BW = functional.pad(targets_BW[:, :-1], (1, 0), value=bos)
    return inputs_BW, targets_BW


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, documents: list[Tensor], window_tokens: int) -> float:
    """exp of the mean negative log-likelihood per token, eos included; windows do not overlap, each begins with bos.

    Leaves the model in the mode (training or not) in which it was.
    """
    was_training = model.training
    model.eval()
    total_nats, total_tokens = 0.0, 0
    for targets_1W in (window[None] for document in documents for window in document.split(window_tokens)):
        inputs_1W = functional.pad(targets_1W[:, :-1], (1, 0), value=model.config.bos_token_id)
        logits_WV = model(inputs_1W).logits[0].float()
        total_nats += functional.cross_entropy(logits_WV, targets_1W[0], reduction="sum").item()
        total_tokens += targets_1W.numel()
    model.train(was_training)
    return math.exp(total_nats / total_tokens)


def save_checkpoint(model: LlamaForCausalLM, tokenizer: Tokenizer, output: Path, recipe: Recipe) -> None:
    """Writes config.json, generation_config.json, model.safetensors (bfloat16) and the tokenizer's two files."""
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.eos_token_id,
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
    )
    model.to(torch.bfloat16).save_pretrained(output)
    save_tokenizer(tokenizer, output, recipe.window_tokens)


def measure(output: Path, split: Split, recipe: Recipe, minutes: float) -> Figures:
    """The model card's figures, from the files as written: bfloat16 weights, fp32 arithmetic."""
    model = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(output)
    sides = {
        side: encode_documents(tokenizer.backend_tokenizer, texts.values())
        for side, texts in (("training", split.training), ("held-out", split.held_out))
    }
    return Figures(
        num_parameters=model.num_parameters(),
        held_out_perplexity=perplexity(model, sides["held-out"], recipe.window_tokens),
        training_perplexity=perplexity(model, sides["training"], recipe.window_tokens),
        held_out_tokens=sum(map(len, sides["held-out"])),
        training_tokens=sum(map(len, sides["training"])),
        held_out_topics=tuple(split.held_out),
        num_training_topics=len(split.training),
        training_minutes=minutes,
        versions={
            "Python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        samples=tuple(draw_sample(model, tokenizer, prompt, greedy, recipe.seed) for prompt in PROMPTS for greedy in (True, False)),
    )


def draw_sample(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, greedy: bool, seed: int
) -> Sample:
    """Continues `prompt` until eos or `SAMPLE_TOKENS` tokens; sampled with generation_config.json's settings."""
    torch.manual_seed(seed)
    inputs = tokenizer(prompt, return_tensors="pt")
    output_1T = model.generate(**inputs, max_new_tokens=SAMPLE_TOKENS, **({"do_sample": False, "temperature": None, "top_p": None} if greedy else {}))
    return Sample(prompt, greedy, tokenizer.decode(output_1T[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()
