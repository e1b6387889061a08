"""Which layers have a sliding window, in both dialects.

transformers 5 writes `layer_types`, one name a layer; transformers 4, and most files on the hub, have
`use_sliding_window` and `max_window_layers`: the layers from that one on slide.
"""

from precast.checkpoints.errors import ConfigError
from precast.checkpoints.json_object import JsonObject

FULL, SLIDING = "full_attention", "sliding_attention"
DEFAULT_WINDOW, DEFAULT_MAX_WINDOW_LAYERS = 4096, 28
"""Where config.json does not say. A null `sliding_window` means that there is no window."""


def sliding_window(config: JsonObject) -> int | None:
    """`sliding_window`: positions that a row sees, its own included."""
    if "sliding_window" in config.values and "sliding_window" not in config:
        return None
    return config.positive_integer("sliding_window", DEFAULT_WINDOW)


def layer_windows(config: JsonObject) -> list[int | None]:
    """Qwen's window of each layer; None: it sees everything.

    As in transformers, `layer_types` wins over `max_window_layers`, and nothing slides unless `use_sliding_window`.
    """
    num_layers = config.positive_integer("num_hidden_layers")
    window = sliding_window(config) if config.boolean("use_sliding_window", False) else None
    types = layer_types(config, num_layers)
    if types is None:
        max_window_layers = config.optional_integer("max_window_layers")
        num_full = DEFAULT_MAX_WINDOW_LAYERS if max_window_layers is None else max_window_layers
        return [window if i >= num_full else None for i in range(num_layers)]
    if window is None and SLIDING in types:
        raise ConfigError(
            f"{config.source}: 'layer_types' has {SLIDING!r}, and there is no window: set 'use_sliding_window' and "
            "'sliding_window'"
        )
    return [window if layer_type == SLIDING else None for layer_type in types]


def layer_types(config: JsonObject, num_layers: int) -> list[str] | None:
    """`layer_types`, each FULL or SLIDING; None where the file has none."""
    types = config.values.get("layer_types")
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != num_layers or any(name not in (FULL, SLIDING) for name in types):
        raise config.error("layer_types", f"a list of {num_layers} names, each {FULL!r} or {SLIDING!r}")
    return types
