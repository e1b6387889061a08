"""What a build for TensorRT is: every choice made, and everything refused that would fail, before the build starts."""

from precast.builder.backends.device_planning import check_attention, find_kernel_compiler, plan_step_limits
from precast.builder.backends.tensorrt.library import find_library
from precast.builder.backends.tensorrt.targets import (
    capabilities,
    capability,
    check_targets,
    name_capability,
)
from precast.builder.build_config import BuildConfig
from precast.builder.errors import BuildError
from precast.builder.plan import DevicePlan
from precast.builder.quantize.formats import quant_format
from precast.checkpoints.model_config import AttentionConfig, MlpConfig, ModelConfig
from precast.checkpoints.ranks.partition import Partition

TITLE = "TensorRT"
"""In sentences."""

_MIN_CAPABILITIES = {"int8": 80, "int4": 80, "fp8": 89, "nvfp4": 100}
"""The least compute capability whose tensor cores, or whose conversions, have the format. Source: NVIDIA,
"Working with Quantized Types", TensorRT-RTX documentation; the library refuses to build below them."""


def plan_tensorrt(model: ModelConfig, config: BuildConfig) -> DevicePlan:
    """Decide what the config leaves open.

    Raises:
        BuildError: what is asked is not available; the message says what is.
        ModuleNotFoundError: TensorRT, or Triton, which compiles our kernels, is not installed.
    """
    library = find_library()
    targets = check_targets(library, config.target)
    check_attention(model, TITLE)
    if config.quantization is not None:
        _check_quantization(config, targets)
    elif config.group_size is not None:
        raise BuildError(
            f"group_size {config.group_size} has no meaning without quantization: choose one, or leave it out"
        )
    max_batch_size, max_num_tokens = plan_step_limits(config)
    return DevicePlan(
        library=library.name,
        library_version=library.version,
        kernel_compiler=find_kernel_compiler("tensorrt", "tensorrt"),
        targets=targets,
        min_capability=max(min(capabilities(targets)), _MIN_CAPABILITIES.get(config.quantization or "", 0)),
        quantization=config.quantization,
        separate_weights=config.weights == "separate",
        max_batch_size=max_batch_size,
        max_num_tokens=max_num_tokens,
        layer_outputs=config.layer_outputs,
    )


def _check_quantization(config: BuildConfig, targets: tuple[str, ...]) -> None:
    chosen = quant_format(str(config.quantization))
    if config.group_size is not None and config.group_size != chosen.group_size:
        available = f"{chosen.group_size} is" if chosen.group_size else "it has one scale for each row"
        raise BuildError(f"{chosen.name} group {config.group_size} is not available on TensorRT; {available}")
    if config.weights == "separate":
        raise BuildError(
            f"weights separate with quantization {chosen.name} is not available on TensorRT: whether it multiplies by "
            "quantised inputs, or makes 16-bit copies of them first, shows only on a GPU; choose weights inside"
        )
    needed = _MIN_CAPABILITIES[chosen.name]
    lacking = [target for target in targets if target.startswith("sm") and capability(target) < needed]
    if lacking:
        raise BuildError(
            f"{chosen.name} is not available on {', '.join(lacking)}: it needs compute capability "
            f"{name_capability(needed)}; leave {'it' if len(lacking) == 1 else 'them'} out, or choose another format"
        )


def check_ranks(model: ModelConfig, config: BuildConfig, partition: Partition) -> None:
    """Raise BuildError where a rank's part of a matrix cannot be quantised as the config asks.

    Every matrix that is quantised must have whole groups; see lowering/lower_linears.py for which these are. A rank has
    a share of the columns of some.
    """
    if config.quantization is None:
        return
    chosen, size = quant_format(config.quantization), partition.mapping.tensor_parallel_size
    share = f" / tensor_parallel_size {size}" if size > 1 else ""
    for index, layer in enumerate(model.layers):
        widths = {f"layers.{index} hidden_size": model.hidden_size}
        if isinstance(layer.mixer, AttentionConfig):
            width = layer.mixer.num_heads * layer.mixer.head_dim // size
            widths[f"layers.{index} num_heads * head_dim{share}"] = width
        if isinstance(layer.feed_forward, MlpConfig):
            widths[f"layers.{index} intermediate_size{share}"] = layer.feed_forward.intermediate_size // size
        for name, width in widths.items():
            if chosen.group_size and width % chosen.group_size:
                on_ranks = " on so many ranks" if share and name.endswith(share) else ""
                raise BuildError(
                    f"{name} is {width}, which groups of {chosen.group_size} do not divide, so {chosen.name} is not "
                    f"available for this model{on_ranks}; int8 is"
                )
