"""Tiny, seeded checkpoints of Llama and the families beside it for tests, saved by transformers itself.

    from tests.tiny_llama import VARIANTS, make_checkpoint
    path = make_checkpoint("gqa", tmp_path / "model")

Tests that only read one use the session's copy: the fixture `tiny_llama` of tests/conftest.py.

Weights are scaled so that every layer changes the result: activations stay near unit variance, attention
scores differ between keys, norms and biases are not 1 and 0. The seeds are chosen so that the greedy
continuation of each of `PROMPTS` keeps its best logit at least `GREEDY_MARGIN` above the second for
`GREEDY_STEPS` steps in float32: noise of rounding can then not change a token. The end-of-sequence row of
the head is small, so greedy decoding does not stop by accident.

torch, transformers and tokenizers are imported inside the functions.
"""

import functools
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BOS_TOKEN_ID = 0
EOS_TOKEN_ID = 1
VOCAB_SIZE = 320  # 2 special tokens, 256 bytes, 62 merges
PROMPTS: tuple[tuple[int, ...], ...] = ((0, 17, 133, 42, 201), (0, 5, 260, 260, 99, 3, 77, 301), (0,))
GREEDY_STEPS = 16
GREEDY_MARGIN = 0.04
DTYPES = ("float32", "bfloat16", "float16")

SENTENCES = (
    "The import statement combines two operations; it searches for the module, then it binds the result.",
    "A dictionary maps keys to values. A list is a mutable sequence, a tuple is an immutable one.",
    "Functions are first-class objects: pass them, return them, store them in a dictionary.",
    "Grüße aus Köln – naïve café, 東京の天気は晴れです。 Привет, мир! 🙂🚀",
    "def add(a: int, b: int) -> int:\n    return a + b\n\nprint(add(1, 2))\n",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)

_BASE: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": BOS_TOKEN_ID,
    "eos_token_id": EOS_TOKEN_ID,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
_SLOW_ROPE = {"rope_type": "default", "rope_theta": 20000.0}
_LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
_DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
_LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "short_factor": [1.0, 1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0],
    "long_factor": [1.0, 1.5, 2.0, 2.5, 4.0, 8.0, 16.0, 20.0],
    "original_max_position_embeddings": 256,
}


@dataclass(frozen=True)
class Variant:
    """What differs from the base model, and how the checkpoint is saved.

    Attributes:
        config: Fields of the family's config (transformers 5 names) that differ from the base model.
        dtype: Dtype of the saved weights unless make_checkpoint is told another.
        seed: Seed of the weights.
        legacy: Write config.json as transformers 4 did (rope_theta, rope_scaling, torch_dtype).
        inv_freq: Add the rotary_emb.inv_freq buffers that old files carry. Implies one file.
        max_shard_size: Size of one shard as transformers writes it ("40KB"); None: one file.
        bin_files: Save pytorch_model.bin instead of safetensors.
        family: transformers' classes are <family>Config and <family>ForCausalLM.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    seed: int = 1
    legacy: bool = False
    inv_freq: bool = False
    max_shard_size: str | None = None
    bin_files: bool = False
    family: str = "Llama"


_WINDOW = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
VARIANTS: dict[str, Variant] = {
    "mha": Variant({"num_key_value_heads": 4}, seed=6),
    "gqa": Variant(seed=16),
    "mqa": Variant({"num_key_value_heads": 1, "num_hidden_layers": 3}, seed=4),
    "head_dim": Variant({"head_dim": 32}, seed=2),
    "attention_bias": Variant({"attention_bias": True}, seed=1),
    "mlp_bias": Variant({"mlp_bias": True}, seed=18),
    "tied": Variant({"tie_word_embeddings": True}, seed=1),
    "rope_linear": Variant({"rope_parameters": _LINEAR_ROPE}, seed=10),
    "rope_llama3": Variant({"rope_parameters": _LLAMA3_ROPE}, seed=2),
    "rope_yarn": Variant({"rope_parameters": _YARN_ROPE}, seed=7),
    "rope_dynamic": Variant({"rope_parameters": _DYNAMIC_ROPE}, seed=1),
    "rope_longrope": Variant({"rope_parameters": _LONG_ROPE}, seed=3),
    "eos_list": Variant({"eos_token_id": [EOS_TOKEN_ID, 7]}, seed=16),
    "odd_vocab": Variant({"vocab_size": VOCAB_SIZE + 11}, seed=7),
    "odd_intermediate": Variant({"intermediate_size": 150}, seed=22),
    "float16": Variant(dtype="float16", seed=12),
    "bfloat16": Variant(dtype="bfloat16", seed=3),
    "bfloat16_tied": Variant({"tie_word_embeddings": True}, dtype="bfloat16", seed=14),
    "shards": Variant(max_shard_size="60KB", seed=16),
    "bin": Variant(dtype="bfloat16", bin_files=True, seed=3),
    "bin_shards": Variant(bin_files=True, max_shard_size="60KB", seed=16),
    "legacy": Variant({"rope_parameters": _SLOW_ROPE}, legacy=True, seed=1),
    "legacy_llama3": Variant({"rope_parameters": _LLAMA3_ROPE, "head_dim": 16}, "bfloat16", legacy=True, seed=1),
    "legacy_llama1": Variant({"num_key_value_heads": 4}, "float16", legacy=True, inv_freq=True, seed=6),
    "mistral": Variant({"sliding_window": 4}, family="Mistral", seed=1),
    "mistral_nemo": Variant({"sliding_window": None, "head_dim": 24}, "bfloat16", family="Mistral", seed=2),
    "mistral_legacy": Variant({"sliding_window": 5}, legacy=True, family="Mistral", seed=2),
    "qwen2": Variant({"sliding_window": 4, "tie_word_embeddings": True}, family="Qwen2", seed=5),
    "qwen2_window": Variant({**_WINDOW, "num_hidden_layers": 3}, family="Qwen2", seed=3),
    "qwen2_types": Variant(
        {**_WINDOW, "layer_types": ["sliding_attention", "full_attention"]}, "bfloat16", family="Qwen2", seed=2
    ),
    "qwen2_legacy": Variant({**_WINDOW, "rope_parameters": _YARN_ROPE}, legacy=True, family="Qwen2", seed=1),
    "qwen3": Variant({"head_dim": 32, "tie_word_embeddings": True}, family="Qwen3", seed=3),
    "qwen3_window": Variant({**_WINDOW, "head_dim": 16, "attention_bias": True}, family="Qwen3", seed=1),
    "qwen3_legacy": Variant({**_WINDOW, "head_dim": 32}, "bfloat16", legacy=True, family="Qwen3", seed=1),
}


def make_checkpoint(variant: str, directory: Path, *, dtype: str | None = None, with_tokenizer: bool = True) -> Path:
    """Write the checkpoint of `variant` into `directory` (made if missing). Returns `directory`.

    dtype: one of `DTYPES`; None means the variant's own. The float32 weights are the same for every
    dtype before they are rounded.
    """
    import torch
    import transformers

    settings = VARIANTS[variant]
    dtype = dtype or settings.dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    config = config_class(settings.family)(**_copy({**_BASE, **settings.config}))
    with torch.random.fork_rng():
        model = getattr(transformers, f"{settings.family}ForCausalLM")(config).eval()
    _fill_weights(model, settings.seed)
    special_tokens = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    model.generation_config = transformers.GenerationConfig(**special_tokens)
    directory.mkdir(parents=True, exist_ok=True)
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(directory, max_shard_size=settings.max_shard_size or "1GB")
    if settings.inv_freq:
        _add_inv_freq(directory, config)
    if settings.bin_files:
        _to_bin_files(directory)
    if settings.legacy:
        _to_legacy_config(directory / "config.json")
    if with_tokenizer:
        make_tokenizer(directory)
    return directory


def config_class(family: str) -> Any:
    """transformers' class of a family's config.json."""
    import transformers

    return getattr(transformers, f"{family}Config")


def make_tokenizer(directory: Path) -> None:
    """Write a byte-level BPE tokenizer of `VOCAB_SIZE` tokens, in Llama 3's manner, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bos, eos = "<|begin_of_text|>", "<|end_of_text|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[bos, eos],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, BOS_TOKEN_ID)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)


@functools.lru_cache(maxsize=8)
def load_reference(directory: Path, dtype: str = "float32") -> Any:
    """The checkpoint as a transformers model with eager attention, computing in `dtype`."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)  # in a model this small, threads only wait for each other
    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype), attn_implementation="eager", local_files_only=True
    )
    return model.eval()


def reference_logits(directory: Path, token_ids: Sequence[int], dtype: str = "float32") -> NDArray[np.float32]:
    """Logits float32 [len(token_ids), vocab_size] of transformers."""
    import torch

    with torch.no_grad():
        logits = load_reference(directory, dtype)(torch.tensor([list(token_ids)])).logits[0]
    result: NDArray[np.float32] = logits.float().numpy()
    return result


def cached_logits(directory: Path, token_ids: Sequence[int], prompt: int) -> NDArray[np.float32]:
    """Logits [len(token_ids), vocab_size] of transformers generating with a cache: `prompt` tokens, then one by one."""
    import torch
    from transformers import DynamicCache

    model, cache = load_reference(directory), DynamicCache()
    argument = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # before 5.24
    rows = []
    ends = [prompt, *range(prompt + 1, len(token_ids) + 1)]
    for start, end in zip([0, *ends], ends, strict=False):
        with torch.no_grad():
            logits = model(torch.tensor([list(token_ids[start:end])]), **{argument: cache}, use_cache=True).logits
        rows.append(logits[0].float().numpy())
    return np.concatenate(rows)


def reference_greedy(
    directory: Path, token_ids: Sequence[int], steps: int = GREEDY_STEPS, dtype: str = "float32"
) -> tuple[list[int], float]:
    """The greedy continuation of `token_ids` (recomputed, no KV cache), and the smallest margin between
    the best and the second-best logit on the way. Does not stop at end-of-sequence tokens."""
    tokens, margin = list(token_ids), float("inf")
    for _ in range(steps):
        row = reference_logits(directory, tokens, dtype)[-1]
        second, best = np.partition(row, -2)[-2:]
        margin = min(margin, float(best - second))
        tokens.append(int(row.argmax()))
    return tokens[len(token_ids) :], margin


def _copy(config: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy: transformers writes into the dicts it is given."""
    result: dict[str, Any] = json.loads(json.dumps(config))
    return result


def _fill_weights(model: Any, seed: int) -> None:
    """Gaussian weights: linear layers keep the variance of their input, norms are near 1, biases differ."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    logit_std = 6.0
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1.0 + 0.2 * values)
            elif name.endswith(".bias"):
                parameter.copy_(0.5 * values)
            elif "embed_tokens" in name:
                # As a tied head, larger rows would make every token predict itself.
                parameter.copy_(values * (0.5 if model.config.tie_word_embeddings else 1.0))
            else:
                gain = {"lm_head.weight": logit_std}.get(name, 2.0 if "down_proj" in name else 1.2)
                parameter.copy_(values * gain / parameter.shape[1] ** 0.5)
        model.get_output_embeddings().weight[EOS_TOKEN_ID] *= 0.05


def _add_inv_freq(directory: Path, config: Any) -> None:
    """Add the buffers that files converted before transformers 4.31 carry."""
    import torch
    from safetensors.torch import load_file, save_file

    path = directory / "model.safetensors"
    tensors = load_file(path)
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, config.head_dim, 2) / config.head_dim)
    for layer in range(config.num_hidden_layers):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = frequencies.clone()
    save_file(tensors, path, {"format": "pt"})


def _to_bin_files(directory: Path) -> None:
    """Replace every safetensors file by a pickle of the same tensors, as transformers 4 could write them."""
    import torch
    from safetensors.torch import load_file

    def bin_name(name: str) -> str:
        return name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")

    for path in sorted(directory.glob("*.safetensors")):
        torch.save(load_file(path), path.with_name(bin_name(path.name)))
        path.unlink()
    index = directory / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        content["weight_map"] = {name: bin_name(file) for name, file in content["weight_map"].items()}
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps(content))
        index.unlink()


def _to_legacy_config(path: Path) -> None:
    """Rewrite config.json as transformers 4 wrote it."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.40.0"
    config["pretraining_tp"] = 1
    config.pop("layer_types", None)
    if config["num_key_value_heads"] == config["num_attention_heads"]:
        del config["num_key_value_heads"]  # Llama 1 had neither field
        del config["head_dim"]
    path.write_text(json.dumps(config, indent=2))
