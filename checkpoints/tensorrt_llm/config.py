"""A unified checkpoint's config.json as the Hugging Face config that it was made from.

Both say the same of a model under other names, so the families' readers do the rest. What would change the result and
is not read is refused by name; keys that only concern how TensorRT-LLM builds (logits_dtype, disable_weight_only_...,
runtime_defaults, ...) are passed over.
"""

from collections.abc import Mapping
from typing import Any

from precast.checkpoints.errors import (
    ConfigError,
    PartitionError,
    UnsupportedArchitectureError,
    UnsupportedDtypeError,
    UnsupportedRopeError,
)
from precast.checkpoints.json_object import JsonObject
from precast.checkpoints.ranks.mapping import Mapping as RankMapping
from precast.checkpoints.ranks.partition import Partition

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
QWEN_TYPES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SAME_NAMES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "mlp_bias",
    "tie_word_embeddings",
)
_OTHER_NAMES = {  # of TensorRT-LLM -> of Hugging Face
    "head_size": "head_dim",
    "norm_epsilon": "rms_norm_eps",
    "rotary_base": "rope_theta",
    "rotary_scaling": "rope_scaling",
    "attn_bias": "attention_bias",
    "dtype": "torch_dtype",
}
_NEUTRAL_VALUES: Mapping[str, Any] = {  # what a model may not be more than
    "residual_mlp": False,
    "use_logn_attn": False,
    "fc_after_embed": False,
    "remove_duplicated_kv_heads": False,
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "output_multiplier_scale": 1.0,
    "rotary_pct": 1.0,
}
_ACTIVATIONS = {"silu": "silu", "swiglu": "silu"}  # of a gated feed-forward, which these architectures always have


def is_unified_config(config: JsonObject) -> bool:
    """Whether this is a unified checkpoint's config: it names one architecture, where Hugging Face's has a list."""
    return "architecture" in config and "architectures" not in config


def to_hugging_face(config: JsonObject, companion: JsonObject | None) -> JsonObject:
    """The Hugging Face config of the same model.

    Args:
        config: The unified checkpoint's.
        companion: The Hugging Face config.json that lies beside the tokenizer, where there is one. Special tokens and
            the attention window are taken from it, which a unified checkpoint does not say.

    Raises:
        UnsupportedArchitectureError, UnsupportedDtypeError, UnsupportedRopeError, ConfigError: what is not supported.
    """
    _refuse_quantization(config)
    architecture = _architecture(config)
    _refuse_experts(config)
    _refuse_other_values(config)
    _check_rope(config)
    activation = config.string("hidden_act", "silu")
    values: dict[str, Any] = {
        "architectures": [architecture],
        "hidden_act": _ACTIVATIONS.get(activation, activation),
        **{name: config.values[name] for name in _SAME_NAMES if name in config},
        **{theirs: config.values[ours] for ours, theirs in _OTHER_NAMES.items() if ours in config},
    }
    if companion is not None:
        names = (*_SPECIAL_TOKENS, "sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
        values |= {name: companion.values[name] for name in names if name in companion}
        if "sliding_window" in companion.values:  # null means that there is none, where a family's default is another
            values["sliding_window"] = companion.values["sliding_window"]
    elif architecture == "MistralForCausalLM":
        values["sliding_window"] = None
    return JsonObject(values, config.source)


def read_partition(config: JsonObject, num_layers: int) -> Partition:
    """The ranks that the files were written for. Of stages that cannot be equal the first have one layer more."""
    mapping = config.optional_object("mapping") or JsonObject({}, config.source)
    for key in ("cp_size", "moe_ep_size"):
        if mapping.positive_integer(key, 1) > 1:
            raise PartitionError(f"{mapping.source}: {key} {mapping.values[key]} is not supported; supported: 1")
    if mapping.boolean("auto_parallel", False):
        raise PartitionError(f"{mapping.source}: auto_parallel is not supported; convert for a tp_size and a pp_size")
    sizes = mapping.positive_integer("tp_size", 1), mapping.positive_integer("pp_size", 1)
    world_size = mapping.positive_integer("world_size", sizes[0] * sizes[1])
    if world_size != sizes[0] * sizes[1]:
        raise mapping.error("world_size", f"tp_size x pp_size = {sizes[0] * sizes[1]}")
    layers, more = divmod(num_layers, sizes[1])
    if layers == 0:
        raise mapping.error("pp_size", f"at most the {num_layers} layers of the model")
    try:
        return Partition(RankMapping.of(*sizes), tuple(layers + (stage < more) for stage in range(sizes[1])))
    except ValueError as error:
        raise ConfigError(f"{mapping.source}: {error}") from error


def embedding_axis(config: JsonObject) -> int | None:
    """Along which axis the ranks of the first stage share the embedding; None where each has all of it."""
    if not config.boolean("use_parallel_embedding", False):
        return None
    axis = config.optional_integer("embedding_sharding_dim") or 0
    if axis not in (0, 1):
        raise config.error("embedding_sharding_dim", "0 or 1")
    return axis


def _architecture(config: JsonObject) -> str:
    name = config.string("architecture")
    if name == "QWenForCausalLM":
        name = QWEN_TYPES.get(config.string("qwen_type", "qwen"), name)
    if name not in ARCHITECTURES:
        raise UnsupportedArchitectureError(
            f"{config.source}: architecture {name!r} is not supported in TensorRT-LLM's checkpoints; supported: "
            f"{', '.join(ARCHITECTURES)}, and QWenForCausalLM with qwen_type {' or '.join(QWEN_TYPES)}"
        )
    return name


def _refuse_quantization(config: JsonObject) -> None:
    quantization = config.optional_object("quantization")
    for key in ("quant_algo", "kv_cache_quant_algo"):
        algorithm = None if quantization is None else quantization.optional_string(key)
        if algorithm is not None:
            raise UnsupportedDtypeError(
                f"{config.source}: {key} {algorithm} is not supported; use a checkpoint that is not quantised"
            )


def _refuse_experts(config: JsonObject) -> None:
    moe = config.optional_object("moe")
    num_experts = (moe.optional_integer("num_experts") if moe else None) or config.optional_integer("moe_num_experts")
    if num_experts:
        raise UnsupportedArchitectureError(f"{config.source}: a mixture of {num_experts} experts is not supported")


def _refuse_other_values(config: JsonObject) -> None:
    for key, neutral in _NEUTRAL_VALUES.items():
        value = config.values.get(key)
        if value is not None and value != neutral:
            raise UnsupportedArchitectureError(
                f"{config.source}: {key} {value!r} is not supported; supported: {neutral!r}"
            )
    if config.boolean("qk_layernorm", False) and _architecture(config) != "Qwen3ForCausalLM":
        raise UnsupportedArchitectureError(
            f"{config.source}: qk_layernorm is not supported for {config.string('architecture')}"
        )


def _check_rope(config: JsonObject) -> None:
    kind = config.string("position_embedding_type")
    if kind != "rope_gpt_neox":
        raise UnsupportedRopeError(
            f"{config.source}: position_embedding_type {kind!r} is not supported; supported: 'rope_gpt_neox'"
        )
    heads = config.positive_integer("num_attention_heads")
    head_size = config.positive_integer("head_size", config.positive_integer("hidden_size") // heads)
    rotary = config.positive_integer("rotary_embedding_dim", head_size)
    if rotary != head_size:
        raise UnsupportedRopeError(
            f"{config.source}: rotary_embedding_dim {rotary} of a head_size of {head_size} is not supported"
        )
