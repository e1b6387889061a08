"""What of a unified checkpoint's config.json is refused, by name.

A config holds whatever its converter put there, and the classes of a model read some of it. These are the keys that
tensorrt_llm/models/llama and models/qwen read, in the releases that __init__.py names, and that can make another model
of the same tensors. All others say how an engine is built or what was converted (logits_dtype, runtime_defaults,
producer, disable_weight_only_quant_plugin, seq_length, quant_ckpt_path, moe_tp_mode, ...), and change no result: they
may have any value.
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

_NEUTRAL_VALUES: Mapping[str, Any] = {  # what a model may not be more than
    "residual_mlp": False,
    "use_logn_attn": False,
    "fc_after_embed": False,
    "remove_duplicated_kv_heads": False,
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
    "layer_idx_offset": 0,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "output_multiplier_scale": 1.0,
    "rotary_pct": 1.0,
}
_NEUTRAL_MAPPING: Mapping[str, Any] = {
    # The sizes of experts' parallelism are not here: without experts they divide nothing, and are -1 in some files.
    "cp_size": 1,
    "attn_cp_size": 1,
    "auto_parallel": False,
    "enable_attention_dp": False,
    "pp_partition": None,
}
# Architecture -> which values of (attn_bias, mlp_bias) its Hugging Face class can have.
_BIASES: Mapping[str, tuple[tuple[bool, ...], tuple[bool, ...]]] = {
    "LlamaForCausalLM": ((False, True), (False, True)),
    "MistralForCausalLM": ((False,), (False,)),
    "Qwen2ForCausalLM": ((True,), (False,)),
    "Qwen3ForCausalLM": ((False,), (False,)),
}


def refuse_engine(config: JsonObject) -> None:
    """Raise ConfigError for what trtllm-build made of a checkpoint: it holds the checkpoint's config in its own."""
    if "pretrained_config" in config:
        raise ConfigError(
            f"{config.source}: belongs to an engine of TensorRT-LLM, whose weights only TensorRT can read; give the "
            "checkpoint that the engine was built from"
        )


def refuse_unsupported(config: JsonObject, architecture: str) -> None:
    """Raise for what would make another model of it than the Hugging Face class `architecture` with the same sizes.

    Raises:
        UnsupportedDtypeError: it is quantised.
        UnsupportedArchitectureError: it has experts, or something that the class has not.
        UnsupportedRopeError: another kind of positions.
    """
    _refuse_pruned(config)
    _refuse_quantization(config)
    _refuse_experts(config)
    _refuse_other_values(config, _NEUTRAL_VALUES, UnsupportedArchitectureError)
    _refuse_other_norms_and_biases(config, architecture)
    _refuse_other_positions(config)


def refuse_unsupported_mapping(mapping: JsonObject) -> None:
    """Raise PartitionError for a division other than by tensors and stages. `mapping` is config.json's member."""
    _refuse_other_values(mapping, _NEUTRAL_MAPPING, PartitionError)


def _refuse_pruned(config: JsonObject) -> None:
    if config.boolean("is_pruned", False):
        raise UnsupportedArchitectureError(
            f"{config.source}: is_pruned is true, so trtllm-prune took the weights out; use the checkpoint that it was "
            "made from"
        )


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


def _refuse_other_values(config: JsonObject, neutral: Mapping[str, Any], error: type[Exception]) -> None:
    for key, supported in neutral.items():
        value = config.values.get(key)
        if value is not None and value != supported:
            raise error(f"{config.source}: {key} {value!r} is not supported; supported: {supported!r}")


def _refuse_other_norms_and_biases(config: JsonObject, architecture: str) -> None:
    # That Qwen 3 has these norms, its class knows: the configs of some releases say false.
    if config.boolean("qk_layernorm", False) and architecture != "Qwen3ForCausalLM":
        raise UnsupportedArchitectureError(f"{config.source}: qk_layernorm is not supported for {architecture}")
    for key, supported in zip(("attn_bias", "mlp_bias"), _BIASES[architecture], strict=True):
        # Where a config does not say, the class decides: only Qwen 2's has biases then.
        if key in config and config.boolean(key) not in supported:
            raise UnsupportedArchitectureError(
                f"{config.source}: {key} {config.boolean(key)} is not supported for {architecture}; "
                f"supported: {supported[0]}"
            )


def _refuse_other_positions(config: JsonObject) -> None:
    kind = config.string("position_embedding_type")
    if kind != "rope_gpt_neox":
        raise UnsupportedRopeError(
            f"{config.source}: position_embedding_type {kind!r} is not supported; supported: 'rope_gpt_neox'"
        )
    heads = config.positive_integer("num_attention_heads")
    head_size = config.positive_integer("head_size", config.positive_integer("hidden_size") // heads)
    rotary = config.positive_integer("rotary_embedding_dim", config.positive_integer("rotary_dim", head_size))
    if rotary != head_size:
        raise UnsupportedRopeError(
            f"{config.source}: rotary_embedding_dim {rotary} of a head_size of {head_size} is not supported"
        )
