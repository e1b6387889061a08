"""Two tokenizers in the manner of real models: byte-level BPE (GPT-2, Llama 3), and SentencePiece's BPE with byte
fallback (Llama 1 and 2, Mistral). In both, a character outside the small alphabet takes several tokens.
"""

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 0, 1


def byte_level() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat. "], trainer)
    return tokenizer


def byte_fallback() -> tokenizers.Tokenizer:
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyz.,", "▁t", "he", "▁the", "ca", "cat", "▁cat", "▁▁"]
    vocabulary = [BOS, EOS, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("c", "a"), ("ca", "t"), ("▁", "cat"), ("▁", "▁")]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: token_id for token_id, piece in enumerate(vocabulary)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([BOS, EOS])
    return tokenizer


def crossing() -> tokenizers.Tokenizer:
    """Byte-level BPE without a pre-tokenizer's cuts, as some models have it: tokens that hold a letter and the first
    byte of a character, or the end of one character and the beginning of the next.
    """
    # In this alphabet, the first bytes of é, 京, 東 and 🙂 are Ã, ä, æ and ð, and the last bytes of 東 and 京 ± and ¬.
    merges = [("a", "æ"), ("b", "ä"), ("c", "ð"), ("Ġ", "Ã"), ("±", "ä"), ("¬", "a"), ("¬a", "æ")]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    vocabulary = {piece: token_id for token_id, piece in enumerate([BOS, EOS, *pieces])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TOKENIZERS = {"byte_level": byte_level(), "byte_fallback": byte_fallback()}
