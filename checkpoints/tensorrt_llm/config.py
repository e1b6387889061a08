"""A unified checkpoint's config.json as the Hugging Face config that it was made from.

Both say the same of a model under other names, so the families' readers do the rest. What a config does not say has
TensorRT-LLM's default, which is not always Hugging Face's. `supported.py` refuses what would make another model.

What differs between releases:

- 0.9 and 0.10 wrote plain dictionaries: no head_size, qk_layernorm, rotary_embedding_dim, mlp_bias; experts as
  moe_num_experts; a mapping of world_size, tp_size and pp_size alone. Qwen 2 was QWenForCausalLM with a qwen_type.
- Up to 0.13 nothing says whether the head is the embedding's table. There is share_embedding_table, the converter's
  option to store one of two tables that are equal. Later there is tie_word_embeddings.
- Qwen 3 came last, and its configs say that qk_layernorm is false.
"""

from typing import Any

from precast.checkpoints.errors import ConfigError, UnsupportedArchitectureError
from precast.checkpoints.json_object import JsonObject
from precast.checkpoints.ranks.mapping import Mapping as RankMapping
from precast.checkpoints.ranks.partition import Partition
from precast.checkpoints.tensorrt_llm.supported import refuse_engine, refuse_unsupported, refuse_unsupported_mapping

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
QWEN_TYPES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
DEFAULT_NORM_EPSILON, DEFAULT_ROTARY_BASE = 1e-5, 10000.0
# Converters of Meta's own files wrote no more than the type; TensorRT-LLM's rotary tables take these then.
DEFAULT_LLAMA3_SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_WINDOWS = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
_ACTIVATIONS = {"swiglu": "silu"}  # of a gated feed-forward, which these architectures always have


def is_unified_config(config: JsonObject) -> bool:
    """Whether this is a config of TensorRT-LLM: it names one architecture, where Hugging Face's has a list."""
    return "architectures" not in config and ("architecture" in config or "pretrained_config" in config)


def to_hugging_face(config: JsonObject, companion: JsonObject | None) -> JsonObject:
    """The Hugging Face config of the same model.

    Args:
        config: The unified checkpoint's.
        companion: The Hugging Face config.json that lies beside the tokenizer, where there is one. Special tokens and
            the attention window are taken from it, which a unified checkpoint does not say.

    Raises:
        UnsupportedArchitectureError, UnsupportedDtypeError, UnsupportedRopeError: what is not supported.
        ConfigError: a value is missing or of another type, the companion is of another model, or it is an engine.
    """
    refuse_engine(config)
    architecture = _architecture(config)
    refuse_unsupported(config, architecture)
    values: dict[str, Any] = {"architectures": [architecture], **_sizes(config), **_rope(config)}
    activation = config.string("hidden_act")
    values |= {
        "hidden_act": _ACTIVATIONS.get(activation, activation),
        "torch_dtype": config.string("dtype"),
        "rms_norm_eps": config.number("norm_epsilon", DEFAULT_NORM_EPSILON),
        "attention_bias": config.boolean("attn_bias", False),
        "mlp_bias": config.boolean("mlp_bias", False),
        # Where nobody says, the files do: see head_is_the_embedding.
        "tie_word_embeddings": config.boolean("tie_word_embeddings", True)
        or config.boolean("share_embedding_table", False),
    }
    if companion is not None:
        _check_companion(companion, values)
        # Null counts: a sliding_window of null is none, where a family's default is another.
        values |= {key: companion.values[key] for key in (*_SPECIAL_TOKENS, *_WINDOWS) if key in companion.values}
    elif architecture == "MistralForCausalLM":
        values["sliding_window"] = None
    return JsonObject(values, config.source)


def read_partition(config: JsonObject, num_layers: int) -> Partition:
    """The ranks that the files were written for. Of stages that cannot be equal the first have one layer more."""
    mapping = config.optional_object("mapping") or JsonObject({}, config.source)
    refuse_unsupported_mapping(mapping)
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


def _check_companion(companion: JsonObject, values: dict[str, Any]) -> None:
    """That both are configs of one model, as far as the companion says: its window and tokens would be wrong."""
    for key in ("architectures", "hidden_size", "num_hidden_layers"):
        if key in companion and companion.values[key] != values[key]:
            raise ConfigError(
                f"{companion.source}: {key} is {companion.values[key]!r}, the checkpoint's is {values[key]!r}; as "
                "tokenizer, give a directory of the same model, or one without a config.json"
            )


def _sizes(config: JsonObject) -> dict[str, int]:
    hidden_size, num_heads = config.positive_integer("hidden_size"), config.positive_integer("num_attention_heads")
    if "head_size" not in config and hidden_size % num_heads != 0:
        raise config.error("hidden_size", f"a multiple of num_attention_heads {num_heads}, for there is no head_size")
    return {
        "vocab_size": config.positive_integer("vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": config.positive_integer("intermediate_size", 4 * hidden_size),
        "num_hidden_layers": config.positive_integer("num_hidden_layers"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": config.positive_integer("num_key_value_heads", num_heads),
        "head_dim": config.positive_integer("head_size", hidden_size // num_heads),
        "max_position_embeddings": config.positive_integer("max_position_embeddings"),
    }


def _rope(config: JsonObject) -> dict[str, Any]:
    scaling = config.optional_object("rotary_scaling")
    parameters = None if scaling is None else dict(scaling.values)
    if scaling is not None and (scaling.optional_string("rope_type") or scaling.optional_string("type")) == "llama3":
        parameters = {**DEFAULT_LLAMA3_SCALING, **scaling.values}
    return {"rope_theta": config.number("rotary_base", DEFAULT_ROTARY_BASE), "rope_scaling": parameters}
