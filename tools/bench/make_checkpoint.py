"""Writes a Llama-shaped checkpoint of random weights, for measuring: what it says means nothing, what it costs does.

    python tools/bench/make_checkpoint.py build/bench/llama-1.1b

The default shape is that of TinyLlama-1.1B. Weights are normal with a standard deviation of 0.02, seeded; the
tokenizer has as many entries as the model, so that reading it costs what a real one of that size costs.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

SHARD_LAYERS = 8
BFloat16Array = NDArray[ml_dtypes.bfloat16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--hidden-size", type=int, default=2048)
    parser.add_argument("--intermediate-size", type=int, default=5632)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    write_config(args)
    write_weights(args)
    write_tokenizer(args.output, args.vocab_size)


def write_config(args: argparse.Namespace) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": args.hidden_size,
        "intermediate_size": args.intermediate_size,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.kv_heads,
        "vocab_size": args.vocab_size,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (args.output / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def write_weights(args: argparse.Namespace) -> None:
    """Several shards, as a checkpoint of this size would have."""
    random = np.random.default_rng(args.seed)
    weight_map: dict[str, str] = {}
    num_shards = math.ceil(args.layers / SHARD_LAYERS) + 1
    for number, tensors in enumerate(shards(args, random), start=1):
        name = f"model-{number:05d}-of-{num_shards:05d}.safetensors"
        save_file(tensors, args.output / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": dict(sorted(weight_map.items()))}
    (args.output / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def shards(args: argparse.Namespace, random: np.random.Generator) -> Iterator[dict[str, BFloat16Array]]:
    hidden, intermediate = args.hidden_size, args.intermediate_size
    kv_size = hidden // args.heads * args.kv_heads

    def weight(rows: int, columns: int) -> BFloat16Array:
        values = random.standard_normal((rows, columns), dtype=np.float32)
        values *= 0.02
        return values.astype(ml_dtypes.bfloat16)

    norm = np.ones(hidden, dtype=ml_dtypes.bfloat16)
    for first in range(0, args.layers, SHARD_LAYERS):
        tensors: dict[str, BFloat16Array] = {}
        for layer in range(first, min(first + SHARD_LAYERS, args.layers)):
            prefix = f"model.layers.{layer}"
            tensors |= {
                f"{prefix}.input_layernorm.weight": norm,
                f"{prefix}.post_attention_layernorm.weight": norm,
                f"{prefix}.self_attn.q_proj.weight": weight(hidden, hidden),
                f"{prefix}.self_attn.k_proj.weight": weight(kv_size, hidden),
                f"{prefix}.self_attn.v_proj.weight": weight(kv_size, hidden),
                f"{prefix}.self_attn.o_proj.weight": weight(hidden, hidden),
                f"{prefix}.mlp.gate_proj.weight": weight(intermediate, hidden),
                f"{prefix}.mlp.up_proj.weight": weight(intermediate, hidden),
                f"{prefix}.mlp.down_proj.weight": weight(hidden, intermediate),
            }
        yield tensors
    yield {
        "model.embed_tokens.weight": weight(args.vocab_size, hidden),
        "model.norm.weight": norm,
        "lm_head.weight": weight(args.vocab_size, hidden),
    }


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A byte-level BPE tokenizer of `vocab_size` tokens: all bytes, pairs of letters, triples and so on."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + ["\u0120"]
    merges: list[tuple[str, str]] = []
    words = list(letters)
    for word in words:  # grows while it is walked: pairs, triples, ...
        for letter in letters:
            if len(vocab) == vocab_size:
                break
            if word + letter not in vocab:
                merges.append((word, letter))
                vocab[word + letter] = len(vocab)
                words.append(word + letter)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    tokenizer.save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    main()
