"""What of a ModelConfig the blocks implement: everything else is refused by name, and no field is ignored.

A field of a config class is either listed here, with the values that the blocks read, or it must have its
default, which means "absent". A class that is not listed is not implemented at all. So a config field that is
added tomorrow is refused, wherever it is used, until a block reads it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType
from typing import Any, NoReturn, TypeVar

from precast.builder.errors import UnsupportedModelError
from precast.checkpoints.model_config import (
    AttentionConfig,
    EmbeddingConfig,
    HeadConfig,
    LayerConfig,
    LinearScaling,
    Llama3Scaling,
    MlpConfig,
    ModelConfig,
    NormConfig,
    QkNormConfig,
    RopeConfig,
    YarnScaling,
)
from precast.checkpoints.rope import DynamicScaling, LongRopeScaling
from precast.plugins.gated_activation.schema import ACTIVATIONS

T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """The values of a field that are implemented, and how an error lists them."""

    accepts: Callable[[Any], bool]
    text: str


ANY = Rule(lambda _: True, "any value")


def only(*values: object) -> Rule:
    return Rule(lambda value: value in values, " or ".join(repr(value) for value in values))


def kind_of(*kinds: type) -> Rule:
    return Rule(lambda value: type(value) in kinds, " or ".join(kind.__name__ for kind in kinds))


EVEN = Rule(lambda value: value % 2 == 0, "an even number")

IMPLEMENTED: Mapping[type, Mapping[str, Rule]] = {
    ModelConfig: {
        "architecture": ANY,
        "vocab_size": ANY,
        "hidden_size": ANY,
        "max_position_embeddings": ANY,
        "layers": ANY,
        "final_norm": kind_of(NormConfig),
        "embedding": kind_of(EmbeddingConfig),
        "head": kind_of(HeadConfig),
        "bos_token_id": ANY,
        "eos_token_ids": ANY,
        "pad_token_id": ANY,
        "dtype": ANY,
    },
    EmbeddingConfig: {},
    HeadConfig: {"tied": ANY, "bias": ANY},
    LayerConfig: {
        "mixer": kind_of(AttentionConfig),
        "feed_forward": kind_of(MlpConfig),
        "mixer_norm": kind_of(NormConfig),
        "feed_forward_norm": kind_of(NormConfig),
    },
    AttentionConfig: {
        "num_heads": ANY,
        "num_kv_heads": ANY,
        "head_dim": EVEN,
        "scale": ANY,
        "rope": kind_of(RopeConfig, NoneType),
        "qkv_bias": ANY,
        "key_bias": ANY,
        "output_bias": ANY,
        "window": ANY,
        "qk_norm": kind_of(QkNormConfig, NoneType),
    },
    QkNormConfig: {"norm": kind_of(NormConfig)},
    RopeConfig: {
        "theta": ANY,
        "rotary_dim": ANY,
        "scaling": kind_of(NoneType, LinearScaling, Llama3Scaling, YarnScaling, DynamicScaling, LongRopeScaling),
    },
    LinearScaling: {"factor": ANY},
    DynamicScaling: {"factor": ANY, "original_max_position_embeddings": ANY},
    LongRopeScaling: dict.fromkeys(
        ("short_factor", "long_factor", "original_max_position_embeddings", "attention_factor"), ANY
    ),
    Llama3Scaling: dict.fromkeys(
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ANY
    ),
    YarnScaling: dict.fromkeys(
        (
            "factor",
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
        ANY,
    ),
    MlpConfig: {"intermediate_size": ANY, "activation": only(*ACTIVATIONS), "bias": ANY},
    NormConfig: {"epsilon": ANY},
}
"""Config class -> field -> what is implemented of it."""


def check_implemented(model: ModelConfig) -> None:
    """Refuse a model that the blocks would emit wrongly or not at all.

    Raises:
        UnsupportedModelError: naming the layer, the field and its value, e.g. "layers.3.mixer.chunk is 8192".
    """
    _check(model, "")


def implemented(block: object, kind: type[T], path: str) -> T:
    """`block`, which must be a `kind`: what `check_implemented` has made sure of, for the type checker."""
    if not isinstance(block, kind):
        _refuse(path, block, kind.__name__)
    return block


def _check(config: object, path: str) -> None:
    if type(config) not in IMPLEMENTED:
        _refuse(path, config, ", ".join(kind.__name__ for kind in IMPLEMENTED))
    rules = IMPLEMENTED[type(config)]
    for field in fields(config):  # type: ignore[arg-type]  # every key of IMPLEMENTED is a dataclass
        value = getattr(config, field.name)
        field_path = f"{path}.{field.name}" if path else field.name
        rule = rules.get(field.name) or only(None if field.default is MISSING else field.default)
        if not rule.accepts(value):
            _refuse(field_path, value, rule.text)
        for part_path, part in _parts(field_path, value):
            _check(part, part_path)


def _parts(path: str, value: object) -> Iterable[tuple[str, object]]:
    """The configs within a field: itself, or the elements of a tuple."""
    if isinstance(value, tuple):
        return [(f"{path}.{index}", part) for index, part in enumerate(value) if is_dataclass(part)]
    return [(path, value)] if is_dataclass(value) else []


def _refuse(path: str, value: object, implemented_values: str) -> NoReturn:
    shown = type(value).__name__ if is_dataclass(value) else repr(value)
    raise UnsupportedModelError(
        f"{path} is {shown}, which the builder does not implement; it implements {implemented_values}"
    )
