"""What transforms each token by itself in a layer: an MLP, a mixture of experts, or a plain matrix."""

from dataclasses import dataclass

from precast.checkpoints.config_checks import require_one_of, require_positive

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu_squared")
ROUTER_SCORES = ("softmax", "sigmoid", "sparsemixer")


@dataclass(frozen=True)
class MlpConfig:
    """down(activation(gate x) * up x) where gated, else down(activation(up x)).

    Attributes:
        activation: "gelu" is the exact one (erf), "quick_gelu" x * sigmoid(1.702 x).
        clamp: Gate and up are limited to this magnitude first (gpt-oss); None: not limited.
        up_offset: Added to `up x` (1.0 in gpt-oss).
        tanh_gate: The output is multiplied by the tanh of a learned scalar (Mllama).
    """

    intermediate_size: int
    activation: str = "silu"
    gated: bool = True
    bias: bool = False
    clamp: float | None = None
    up_offset: float = 0.0
    tanh_gate: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "intermediate_size", "clamp")
        require_one_of(self, "activation", ACTIVATIONS)


@dataclass(frozen=True)
class RouterConfig:
    """How a token chooses its experts and weighs their outputs.

    Attributes:
        scores: "softmax" over all experts, "sigmoid" of each, or PhiMoE's "sparsemixer".
        normalize: The chosen experts' weights are divided by their sum.
        weight_scale: Multiplies the weights afterwards.
        choice_bias: A learned bias decides the choice only, not the weights (DeepSeek-V3).
        bias: A learned bias of the router's projection (gpt-oss).
        num_groups, chosen_groups: Experts are chosen from the best groups; 1 and 1: from all.
        weighs_input: Weights multiply the experts' input instead of their output (Llama 4).
    """

    scores: str = "softmax"
    normalize: bool = True
    weight_scale: float = 1.0
    choice_bias: bool = False
    bias: bool = False
    num_groups: int = 1
    chosen_groups: int = 1
    weighs_input: bool = False

    def __post_init__(self) -> None:
        require_one_of(self, "scores", ROUTER_SCORES)
        require_positive(self, "weight_scale", "num_groups", "chosen_groups")
        if self.chosen_groups > self.num_groups:
            raise ValueError(f"RouterConfig: chosen_groups {self.chosen_groups} exceeds num_groups {self.num_groups}")


@dataclass(frozen=True)
class MixtureOfExpertsConfig:
    """Each token passes through `experts_per_token` of `num_experts` MLPs, and through the shared one if any.

    Attributes:
        shared_expert_gate: The shared expert's output is multiplied by a learned sigmoid (Qwen2-MoE).
        latent_size: Experts work in a projection of this size (Nemotron-H); None: in the hidden size.
    """

    num_experts: int
    experts_per_token: int
    expert: MlpConfig
    router: RouterConfig
    shared_expert: MlpConfig | None = None
    shared_expert_gate: bool = False
    latent_size: int | None = None

    def __post_init__(self) -> None:
        require_positive(self, "num_experts", "experts_per_token", "latent_size")
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"MixtureOfExpertsConfig: experts_per_token {self.experts_per_token} exceeds "
                f"num_experts {self.num_experts}"
            )
        if self.num_experts % self.router.num_groups != 0:
            raise ValueError(
                f"MixtureOfExpertsConfig: num_experts {self.num_experts} is not a multiple of "
                f"the router's num_groups {self.router.num_groups}"
            )


@dataclass(frozen=True)
class LinearFeedForwardConfig:
    """A matrix [H, H] in the place of an MLP (NemotronNAS)."""

    bias: bool = False


FeedForwardConfig = MlpConfig | MixtureOfExpertsConfig | LinearFeedForwardConfig
