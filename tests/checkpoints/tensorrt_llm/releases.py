"""Tiny models in two forms, written in NumPy from one set of random tensors: as a Hugging Face directory, and as the
unified checkpoint that a release of TensorRT-LLM made of it.

Written from TensorRT-LLM's sources and from nothing of Precast's. There are two converters in its history:

- `legacy`, 0.9 to 0.12 (models/llama/convert.py: load_weights_from_hf_model; models/qwen likewise): torch.chunk of
  whole tensors, of a padded table where that is the head's too; stages of as many layers each, what remains is lost.
- `loader`, after that (models/model_weights_loader.py): every share has the size of the engine's parameter, and is
  padded with zeros to it; stages as torch.tensor_split makes them; the engine's tables of angles are saved too.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Array = NDArray[np.float32]
Tensors = dict[str, Array]
FAMILIES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
            "qwen3": "Qwen3ForCausalLM"}  # fmt: skip
# Of the releases that stand for all: the families that each is asked for here.
RELEASES = {
    "0.9": ("llama", "mistral"),
    "0.10": ("qwen2",),
    "0.12": ("llama", "mistral"),
    "0.13": ("llama", "mistral", "qwen2"),
    "later": ("llama", "mistral", "qwen2", "qwen3"),
}


@dataclass(frozen=True)
class TinyModel:
    """Sizes as in Hugging Face's configs; `bias`: of all projections of attention, for Llama."""

    family: str
    kv_heads: int = 1
    group: int = 2  # query heads for each of key and value
    head_size: int = 2
    hidden: int = 8
    intermediate: int = 8
    layers: int = 2
    vocab: int = 12
    bias: bool = False
    mlp_bias: bool = False
    tied: bool = False

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group

    @property
    def qkv_bias(self) -> bool:
        return self.bias or self.family == "qwen2"


@dataclass(frozen=True)
class Division:
    """The release whose converter it was, and what it was asked for.

    `embedding_axis`: None without use_parallel_embedding.
    """

    release: str
    tp: int = 1
    pp: int = 1
    embedding_axis: int | None = None
    shares_embedding: bool = False  # --use_embedding_sharing, until 0.13

    @property
    def is_legacy(self) -> bool:
        return self.release in ("0.9", "0.10", "0.12")


def can_convert(model: TinyModel, division: Division) -> bool:
    """Whether the release converts such a model into files that it can load itself."""
    tp, pp = division.tp, division.pp
    divides = model.heads % tp == 0 and model.intermediate % tp == 0 and model.hidden % tp == 0
    groups = model.kv_heads % tp == 0 or tp % model.kv_heads == 0
    if not (divides and groups and pp <= model.layers):
        return False
    axis, is_even = division.embedding_axis, model.vocab % tp == 0
    can_share = model.tied and pp == 1 and (tp == 1 or axis == 0) and (is_even or not division.is_legacy)
    if division.shares_embedding and not can_share:
        return False
    if not division.is_legacy:
        return True
    is_padded = model.tied and pp == 1  # and an engine's parameter has a share of the padded table, or all of the other
    loads = is_even or (axis == 0) == is_padded
    plain = not model.mlp_bias and (not model.bias or model.group == 1)
    square = model.group > 1 or model.heads * model.head_size == model.hidden
    old_head_size = division.release == "0.12" or model.heads * model.head_size == model.hidden
    return loads and plain and square and old_head_size and model.layers % pp == 0


def hf_tensors(model: TinyModel, seed: int) -> Tensors:
    random = np.random.default_rng(seed)
    q, kv = model.heads * model.head_size, model.kv_heads * model.head_size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (model.vocab, model.hidden),
        "model.norm.weight": (model.hidden,),
    }
    if not model.tied:
        shapes["lm_head.weight"] = (model.vocab, model.hidden)
    for i in range(model.layers):
        at = f"model.layers.{i}."
        linears = {
            "self_attn.q_proj": (q, model.hidden, model.qkv_bias),
            "self_attn.k_proj": (kv, model.hidden, model.qkv_bias),
            "self_attn.v_proj": (kv, model.hidden, model.qkv_bias),
            "self_attn.o_proj": (model.hidden, q, model.bias),
            "mlp.gate_proj": (model.intermediate, model.hidden, model.mlp_bias),
            "mlp.up_proj": (model.intermediate, model.hidden, model.mlp_bias),
            "mlp.down_proj": (model.hidden, model.intermediate, model.mlp_bias),
        }
        for name, (rows, columns, has_bias) in linears.items():
            shapes[f"{at}{name}.weight"] = (rows, columns)
            if has_bias:
                shapes[f"{at}{name}.bias"] = (rows,)
        shapes |= {f"{at}{name}.weight": (model.hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
        if model.family == "qwen3":
            shapes |= {f"{at}self_attn.{part}_norm.weight": (model.head_size,) for part in "qk"}
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write_hugging_face(model: TinyModel, tensors: Tensors, directory: Path) -> Path:
    config = {
        "architectures": [FAMILIES[model.family]],
        "vocab_size": model.vocab,
        "hidden_size": model.hidden,
        "intermediate_size": model.intermediate,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": 2e-5,
        "max_position_embeddings": 64,
        "rope_theta": 500.0,
        "rope_scaling": None,
        "sliding_window": None,
        "attention_bias": model.bias,
        "mlp_bias": model.mlp_bias,
        "tie_word_embeddings": model.tied,
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")
    return directory


def write_unified(model: TinyModel, tensors: Tensors, directory: Path, division: Division) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(unified_config(model, division)))
    for rank in range(division.tp * division.pp):
        stage, tensor_rank = divmod(rank, division.tp)
        weights = _rank(model, tensors, division, stage, tensor_rank)
        save_file({name: np.ascontiguousarray(array) for name, array in weights.items()},
                  directory / f"rank{rank}.safetensors")  # fmt: skip
    return directory


def unified_config(model: TinyModel, division: Division) -> dict[str, Any]:
    """config.json as each release's converter makes it."""
    mapping = {"world_size": division.tp * division.pp, "tp_size": division.tp, "pp_size": division.pp}
    config: dict[str, Any] = {
        "architecture": "QWenForCausalLM" if division.release == "0.10" else FAMILIES[model.family],
        "dtype": "float32",
        "logits_dtype": "float32",
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "hidden_size": model.hidden,
        "intermediate_size": model.intermediate,
        "num_key_value_heads": model.kv_heads,
        "vocab_size": model.vocab,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": 64,
        "hidden_act": "silu",
        "rotary_base": 500.0,
        "rotary_scaling": None,
        "norm_epsilon": 2e-5,
        "mapping": mapping,
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]},
        "use_parallel_embedding": division.embedding_axis is not None,
        "embedding_sharding_dim": division.embedding_axis or 0,
        "disable_weight_only_quant_plugin": False,
    }
    if division.release != "later":
        config["share_embedding_table"] = division.shares_embedding
    if division.release == "0.9":
        config |= {"moe_num_experts": 0, "moe_top_k": 0, "moe_tp_mode": 2, "moe_normalization_mode": None,
                   "attn_bias": model.bias}  # fmt: skip
    elif division.release == "0.10":
        config |= {"qwen_type": model.family}
    else:  # objects that write themselves
        mapping |= {"gpus_per_node": 8, "cp_size": 1, "moe_tp_size": division.tp, "moe_ep_size": 1}
        config |= {
            "head_size": model.head_size,
            "qk_layernorm": False,  # of Qwen 3 as well: its class knows
            "moe": {"num_experts": 0, "top_k": 0, "normalization_mode": None},
            "mlp_bias": model.mlp_bias,
            "attn_bias": model.qkv_bias,
        }
        config |= {"qwen_type": model.family, "use_logn_attn": False} if "qwen" in model.family else {
            "residual_mlp": False, "remove_duplicated_kv_heads": False}  # fmt: skip
    if division.release == "later":
        mapping |= {"moe_cluster_size": 1, "attn_tp_size": division.tp, "attn_cp_size": 1, "auto_parallel": False}
        config |= {"tie_word_embeddings": model.tied, "rotary_embedding_dim": model.head_size,
                   "runtime_defaults": None, "fc_after_embed": False, "layer_idx_offset": 0}  # fmt: skip
    return config


def _rank(model: TinyModel, tensors: Tensors, division: Division, stage: int, rank: int) -> Tensors:
    weights: Tensors = {}
    for local, index in enumerate(_layers_of(model, division, stage)):
        layer = {name.removeprefix(f"model.layers.{index}."): array for name, array in tensors.items()
                 if name.startswith(f"model.layers.{index}.")}  # fmt: skip
        weights |= {f"transformer.layers.{local}.{name}": array
                    for name, array in _layer(model, layer, division.tp, rank).items()}  # fmt: skip
    embedding = tensors["model.embed_tokens.weight"]
    if stage == 0:
        weights["transformer.vocab_embedding.weight"] = _embedding(model, embedding, division, rank)
    if stage == division.pp - 1:
        weights["transformer.ln_f.weight"] = tensors["model.norm.weight"]
        if not division.shares_embedding:
            head = _pad_rows(tensors.get("lm_head.weight", embedding), division.tp)
            weights["lm_head.weight"] = np.split(head, division.tp)[rank]
    if not division.is_legacy:
        weights |= {name: np.ones((1, 64, 2), np.float32) for name in
                    ("embed_positions", "rotary_inv_freq", "embed_positions_for_gpt_attention")}  # fmt: skip
    return weights


def _layers_of(model: TinyModel, division: Division, stage: int) -> list[int]:
    if division.is_legacy:
        count = model.layers // division.pp
        return list(range(stage * count, (stage + 1) * count))
    return [int(index) for index in np.array_split(np.arange(model.layers), division.pp)[stage]]


def _layer(model: TinyModel, layer: Tensors, tp: int, rank: int) -> Tensors:
    weights = {
        "input_layernorm.weight": layer["input_layernorm.weight"],
        "post_layernorm.weight": layer["post_attention_layernorm.weight"],
    }
    for name, array in layer.items():
        module, _, kind = name.rpartition(".")
        ours = {"self_attn.o_proj": "attention.dense", "mlp.down_proj": "mlp.proj"}.get(module)
        if ours is not None:  # row-parallel: its bias is whole on every rank, and added after the sum over ranks
            weights[f"{ours}.{kind}"] = array if kind == "bias" else np.split(array, tp, axis=1)[rank]
        ours = {"mlp.gate_proj": "mlp.fc", "mlp.up_proj": "mlp.gate"}.get(module)
        if ours is not None:
            weights[f"{ours}.{kind}"] = np.split(array, tp)[rank]
        ours = {"self_attn.q_norm": "attention.q_layernorm", "self_attn.k_norm": "attention.k_layernorm"}.get(module)
        if ours is not None:
            weights[f"{ours}.{kind}"] = array
    for kind in ("weight", "bias"):
        if f"self_attn.q_proj.{kind}" in layer:
            query, key, value = (layer[f"self_attn.{part}_proj.{kind}"] for part in "qkv")
            fused = [np.split(query, tp)[rank], _kv_share(model, key, tp, rank), _kv_share(model, value, tp, rank)]
            weights[f"attention.qkv.{kind}"] = np.concatenate(fused)
    return weights


def _kv_share(model: TinyModel, array: Array, tp: int, rank: int) -> Array:
    """Fewer heads than ranks: each is there for tp / kv_heads ranks that follow each other."""
    heads: Array = array.reshape(model.kv_heads, model.head_size, *array.shape[1:])
    copies = max(tp // model.kv_heads, 1)
    share: Array = np.split(np.repeat(heads, copies, axis=0), tp)[rank]
    return share.reshape(-1, *array.shape[1:])


def _embedding(model: TinyModel, embedding: Array, division: Division, rank: int) -> Array:
    axis, tp = division.embedding_axis, division.tp
    if axis is None or tp == 1:
        return embedding
    if axis == 1:
        columns: Array = np.split(embedding, tp, axis=1)[rank]
        return columns
    if division.is_legacy and model.tied and division.pp == 1:
        embedding = _pad_rows(embedding, tp)  # the head's padded table is the embedding's too, on the last stage
    rows = math.ceil(len(embedding) / tp)
    share = embedding[rank * rows : (rank + 1) * rows]
    return share if division.is_legacy else np.pad(share, ((0, rows - len(share)), (0, 0)))


def _pad_rows(array: Array, multiple: int) -> Array:
    return np.pad(array, ((0, -len(array) % multiple), (0, 0)))
