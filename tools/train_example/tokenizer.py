"""The byte-level BPE tokenizer of the example checkpoint, and its two files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS = "<|begin_of_text|>"
EOS = "<|end_of_text|>"
BOS_ID = 0
EOS_ID = 1


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains on `texts`; the result puts bos before every text it encodes with special tokens, as Llama 3's does.

    bos is id 0, eos is id 1, then the 256 bytes, then the merges: any text can be encoded, there is no unknown token.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],  # first in the vocabulary: BOS_ID and EOS_ID
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"the text yields only {tokenizer.get_vocab_size()} of {vocab_size} tokens: lower vocab_size")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B:1", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path, max_tokens: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json.

    The config is written here, and not by transformers, because transformers 5 names a tokenizer class that
    transformers 4 does not know; both load `PreTrainedTokenizerFast`.
    """
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "bos_token": BOS,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_tokens,
        "pad_token": EOS,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
