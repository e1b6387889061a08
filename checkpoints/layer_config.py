"""One layer of a model: its mixer, its feed-forward, and where its norms sit."""

from dataclasses import dataclass

from precast.checkpoints.config_checks import require_positive
from precast.checkpoints.feed_forward_config import FeedForwardConfig
from precast.checkpoints.mixer_config import AttentionConfig, MixerConfig
from precast.checkpoints.norm_config import NormConfig


@dataclass(frozen=True)
class LayerConfig:
    """A layer adds to its input x, in turn, the output of each sublayer it has:

        x = residual_norm(x + residual_scale * post_norm(sublayer(norm(x))))

    where a norm that is None is left out. Llama has `mixer_norm` and `feed_forward_norm` (pre-norm); Gemma 3
    adds the two post norms; EXAONE 4 has only those; BERT has only the residual norms.

    Attributes:
        cross_attention: An encoder-decoder's second sublayer, between mixer and feed-forward.
        parallel: Mixer and feed-forward read the same x, and x grows by both outputs at once. Where
            `feed_forward_norm` is None, both read mixer_norm(x).
    """

    mixer: MixerConfig | None
    feed_forward: FeedForwardConfig | None
    mixer_norm: NormConfig | None = None
    feed_forward_norm: NormConfig | None = None
    mixer_post_norm: NormConfig | None = None
    feed_forward_post_norm: NormConfig | None = None
    mixer_residual_norm: NormConfig | None = None
    feed_forward_residual_norm: NormConfig | None = None
    cross_attention: AttentionConfig | None = None
    cross_attention_norm: NormConfig | None = None
    cross_attention_residual_norm: NormConfig | None = None
    parallel: bool = False
    residual_scale: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, "residual_scale")
        self._refuse_norms_without(self.mixer, "mixer")
        self._refuse_norms_without(self.feed_forward, "feed_forward")
        self._refuse_norms_without(self.cross_attention, "cross_attention")
        if self.parallel and (self.mixer is None or self.feed_forward is None):
            raise ValueError("LayerConfig: a parallel layer needs a mixer and a feed_forward")

    def _refuse_norms_without(self, sublayer: object | None, name: str) -> None:
        for suffix in ("norm", "post_norm", "residual_norm"):
            if sublayer is None and getattr(self, f"{name}_{suffix}", None) is not None:
                raise ValueError(f"LayerConfig: {name}_{suffix} is given, and there is no {name}")
