"""The vision tower of a multimodal model, and the projector from its output to the text model's hidden size."""

from dataclasses import dataclass

from precast.checkpoints.config_checks import require_one_of, require_positive
from precast.checkpoints.feed_forward_config import ACTIVATIONS
from precast.checkpoints.layer_config import LayerConfig
from precast.checkpoints.norm_config import NormConfig

CLASS_TOKENS = ("none", "first", "last")
VISION_POSITIONS = ("learned", "rope_2d")
PROJECTOR_KINDS = ("mlp", "average_pool", "pixel_shuffle", "patch_merger", "downsample", "c_abstractor")


@dataclass(frozen=True)
class VisionConfig:
    """A vision transformer over square patches.

    Attributes:
        image_size, patch_size: Pixels of a side.
        temporal_patch_size: Frames that one patch spans.
        class_token: Where the class token stands in the sequence.
        keep_class_token: Whether the projector sees it.
        output_layer: Which hidden state is the output; -1: the last layer's, -2: the one before (CLIP in LLaVA).
        window_size: Side in pixels of an attention window; None: attention over the image (Qwen2.5-VL).
        full_attention_layers: Layers that see the whole image in spite of windows.
        media_token_id: The token of a prompt that image embeddings replace.
    """

    hidden_size: int
    layers: tuple[LayerConfig, ...]
    image_size: int
    patch_size: int
    media_token_id: int
    num_channels: int = 3
    temporal_patch_size: int = 1
    patch_bias: bool = False
    class_token: str = "none"
    keep_class_token: bool = False
    positions: str = "learned"
    pre_norm: NormConfig | None = None
    post_norm: NormConfig | None = None
    output_layer: int = -1
    window_size: int | None = None
    full_attention_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_positive(self, "hidden_size", "image_size", "patch_size", "num_channels", "temporal_patch_size")
        require_positive(self, "window_size")
        require_one_of(self, "class_token", CLASS_TOKENS)
        require_one_of(self, "positions", VISION_POSITIONS)
        if not -len(self.layers) <= self.output_layer < 0:
            raise ValueError(
                f"VisionConfig: output_layer {self.output_layer} does not count back from {len(self.layers)} layers"
            )


@dataclass(frozen=True)
class ProjectorConfig:
    """Vision features -> text embeddings.

    Attributes:
        kind: How neighbouring patches are merged before the linear layers; "mlp": not at all.
        merge_size: Side in patches of a merged square (pixel shuffle, patch merger, downsample).
        num_queries: Output tokens per image of a C-Abstractor.
        num_linears: Linear layers, `activation` between them.
    """

    kind: str
    input_size: int
    output_size: int
    hidden_size: int | None = None
    num_linears: int = 2
    activation: str = "gelu"
    bias: bool = True
    norm: NormConfig | None = None
    merge_size: int = 1
    num_queries: int | None = None

    def __post_init__(self) -> None:
        require_one_of(self, "kind", PROJECTOR_KINDS)
        require_one_of(self, "activation", ACTIVATIONS)
        require_positive(self, "input_size", "output_size", "hidden_size", "num_linears", "merge_size", "num_queries")
