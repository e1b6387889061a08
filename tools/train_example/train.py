"""Trains the example checkpoint `pydoc-llama`: a small Llama on Python's documentation topics.

    python tools/train_example/train.py --output examples/checkpoints/pydoc-llama

Needs torch 2.9, transformers 5 and tokenizers, two CPU cores and minutes. Downloads nothing.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import tokenizers
import torch
import transformers
from corpus import Split, python_topics, split_topics
from evaluate import draw_sample, perplexity
from model_card import Figures, render
from optimise import train
from recipe import Recipe
from stream import encode_documents, encode_stream
from tokenizer import BOS_ID, EOS_ID, save_tokenizer, train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PROMPTS = ("The import statement", "A class definition")


def main() -> None:
    recipe, output = parse_arguments()
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.num_threads)
    split = split_topics(python_topics(), recipe.hold_out_every)
    tokenizer = train_tokenizer(split.training.values(), recipe.vocab_size)
    stream = encode_stream(tokenizer, split.training.values())
    model = new_model(recipe)

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


def new_model(recipe: Recipe) -> LlamaForCausalLM:
    """A model of random weights in fp32, which drops activations behind every projection into the residual stream."""
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_kv_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=recipe.max_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    model = LlamaForCausalLM(config)

    def drop(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return functional.dropout(output, recipe.dropout, module.training)

    for name, module in model.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            module.register_forward_hook(drop)
    return model


def save_checkpoint(model: LlamaForCausalLM, tokenizer: Tokenizer, output: Path, recipe: Recipe) -> None:
    """Writes config.json, generation_config.json, model.safetensors (bfloat16) and the tokenizer's two files."""
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=EOS_ID,
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
    )
    model.to(torch.bfloat16)  # type: ignore[arg-type]  # transformers hides the signature
    model.save_pretrained(output)
    save_tokenizer(tokenizer, output, recipe.max_tokens)


def measure(output: Path, split: Split, recipe: Recipe, minutes: float) -> Figures:
    """The model card's figures, from the files as written: bfloat16 weights, fp32 arithmetic."""
    model = LlamaForCausalLM.from_pretrained(output, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(output)
    sides = {
        side: encode_documents(tokenizer.backend_tokenizer, texts.values())
        for side, texts in (("training", split.training), ("held-out", split.held_out))
    }
    return Figures(
        num_parameters=model.num_parameters(),
        held_out_perplexity=perplexity(model, sides["held-out"], recipe.max_tokens),
        training_perplexity=perplexity(model, sides["training"], recipe.max_tokens),
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
        samples=tuple(
            draw_sample(model, tokenizer, prompt, greedy, recipe.seed) for prompt in PROMPTS for greedy in (True, False)
        ),
    )


if __name__ == "__main__":
    main()
