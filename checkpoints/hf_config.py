"""What all families read alike from a Hugging Face config.json, in both of its dialects.

transformers 5 writes `rope_parameters` and `dtype`; transformers 4, and most files on the hub, have
`rope_theta` with `rope_scaling`, and `torch_dtype`.
"""

import math
from pathlib import Path

from precast.checkpoints.companion_files import CONFIG
from precast.checkpoints.errors import (
    ConfigError,
    UnsupportedActivationError,
    UnsupportedArchitectureError,
    UnsupportedDtypeError,
    UnsupportedRopeError,
)
from precast.checkpoints.json_object import JsonObject, read_json_file
from precast.checkpoints.model_config import DTYPES
from precast.checkpoints.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)

DEFAULT_ROPE_THETA = 10000.0
ROPE_TYPES = ("default", "linear", "llama3", "yarn", "dynamic", "longrope")


def read_config(directory: Path) -> JsonObject:
    """The directory's config.json."""
    path = directory / CONFIG
    if not path.is_file():
        raise ConfigError(f"{directory}: has no {CONFIG}; give the directory of a Hugging Face checkpoint")
    return JsonObject(read_json_file(path), str(path))


def architecture(config: JsonObject) -> str:
    """`architectures[0]`."""
    names = config.values.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise UnsupportedArchitectureError(
            f"{config.source}: 'architectures' must name the model's class, and is {names!r}"
        )
    return names[0]


def refuse_quantization(config: JsonObject) -> None:
    """Raise UnsupportedDtypeError for a checkpoint that is already quantised."""
    quantization = config.optional_object("quantization_config")
    if quantization is not None:
        method = quantization.string("quant_method", "by an unnamed method")
        raise UnsupportedDtypeError(
            f"{config.source}: the weights are quantised ({method}), which is not supported; "
            f"use a checkpoint in {', '.join(DTYPES)}"
        )


def declared_dtype(config: JsonObject) -> str | None:
    """The dtype that the config declares for the weights, one of `DTYPES`; None where it declares none."""
    name = config.optional_string("dtype") or config.optional_string("torch_dtype")
    if name is None:
        return None
    name = name.removeprefix("torch.")
    if name not in DTYPES:
        raise UnsupportedDtypeError(f"{config.source}: dtype {name!r} is not supported; supported: {', '.join(DTYPES)}")
    return name


def token_id(config: JsonObject, generation: JsonObject | None, key: str) -> int | None:
    """A special token: config.json's, or else generation_config.json's. A negative id means that there is none."""
    for source in (config, generation):
        value = None if source is None else source.optional_integer(key)
        if value is not None:
            return value if value >= 0 else None
    return None


def merged_token_ids(config: JsonObject, generation: JsonObject | None, key: str) -> tuple[int, ...]:
    """The ids of both files without repetition, config.json's first. Either may give one id or a list."""
    ids = config.token_ids(key) + (() if generation is None else generation.token_ids(key))
    return tuple(dict.fromkeys(ids))


def activation(config: JsonObject, key: str, supported: dict[str, str]) -> str:
    """The activation named by `key`; `supported` maps Hugging Face's names to ours."""
    name = config.string(key)
    if name not in supported:
        raise UnsupportedActivationError(
            f"{config.source}: {key} {name!r} is not supported; supported: {', '.join(supported)}"
        )
    return supported[name]


def head_dim(config: JsonObject) -> int:
    """`head_dim`, or hidden size / heads where the file does not say."""
    if "head_dim" in config:
        return config.positive_integer("head_dim")
    hidden_size, num_heads = config.positive_integer("hidden_size"), config.positive_integer("num_attention_heads")
    if hidden_size % num_heads != 0:
        raise ConfigError(
            f"{config.source}: hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}, "
            "and there is no head_dim"
        )
    return hidden_size // num_heads


def rope(config: JsonObject, rotary_dim: int, max_position_embeddings: int) -> RopeConfig:
    """The rotary embedding, from `rope_parameters` or from `rope_theta` and `rope_scaling`.

    As in transformers: `rope_scaling` wins where both are there, a theta inside it wins over the one beside
    it, its type may be called `rope_type` or `type`, and where it does not say on which context the model
    was trained, that is `original_max_position_embeddings` beside it, or else `max_position_embeddings`.
    """
    parameters = _rope_parameters(config)
    kind = parameters.optional_string("rope_type") or parameters.string("type", "default")
    if kind not in ROPE_TYPES:
        raise UnsupportedRopeError(
            f"{parameters.source}: rope type {kind!r} is not supported; supported: {', '.join(ROPE_TYPES)}"
        )
    partial = parameters.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise UnsupportedRopeError(
            f"{parameters.source}: partial_rotary_factor {partial} is not supported for this architecture; "
            "supported: 1.0"
        )
    theta = parameters.number("rope_theta", config.number("rope_theta", DEFAULT_ROPE_THETA))
    trained_positions = config.optional_integer("original_max_position_embeddings") or parameters.positive_integer(
        "original_max_position_embeddings", max_position_embeddings
    )
    scaling = _rope_scaling(kind, parameters, trained_positions, max_position_embeddings)
    return RopeConfig(theta, rotary_dim, scaling)


def _rope_parameters(config: JsonObject) -> JsonObject:
    for key in ("rope_scaling", "rope_parameters"):
        parameters = config.optional_object(key)
        if parameters is not None and parameters.values:
            return parameters
    return JsonObject({}, config.source)


def _rope_scaling(kind: str, parameters: JsonObject, trained_positions: int, max_positions: int) -> RopeScaling | None:
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(parameters.number("factor"))
    if kind == "llama3":
        return Llama3Scaling(
            factor=parameters.number("factor"),
            low_freq_factor=parameters.number("low_freq_factor"),
            high_freq_factor=parameters.number("high_freq_factor"),
            original_max_position_embeddings=trained_positions,
        )
    if kind == "dynamic":
        # transformers grows it from max_position_embeddings on, whatever the file calls original.
        return DynamicScaling(parameters.number("factor"), max_positions)
    if kind == "longrope":
        return _longrope(parameters, trained_positions, max_positions)
    return YarnScaling(
        factor=parameters.number("factor", max_positions / trained_positions),
        original_max_position_embeddings=trained_positions,
        beta_fast=parameters.number("beta_fast", 0.0) or 32.0,  # 0 means the default, as in transformers
        beta_slow=parameters.number("beta_slow", 0.0) or 1.0,
        attention_factor=parameters.optional_number("attention_factor"),
        mscale=parameters.optional_number("mscale"),
        mscale_all_dim=parameters.optional_number("mscale_all_dim"),
        truncate=parameters.boolean("truncate", True),
    )


def _longrope(parameters: JsonObject, trained_positions: int, max_positions: int) -> LongRopeScaling:
    if trained_positions < 2:
        raise parameters.error("original_max_position_embeddings", "at least 2")
    factor = parameters.number("factor", max_positions / trained_positions)
    default = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained_positions))
    return LongRopeScaling(
        short_factor=parameters.numbers("short_factor"),
        long_factor=parameters.numbers("long_factor"),
        original_max_position_embeddings=trained_positions,
        attention_factor=parameters.number("attention_factor", default),
    )
