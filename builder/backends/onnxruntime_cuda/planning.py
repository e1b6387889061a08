"""What a build for ONNX Runtime on GPUs is: every choice made, and everything refused, before the build starts."""

from collections.abc import Sequence

from precast.builder.backends.device_planning import check_attention, find_kernel_compiler, plan_step_limits
from precast.builder.build_config import BuildConfig
from precast.builder.errors import BuildError
from precast.builder.plan import DevicePlan
from precast.checkpoints.model_config import ModelConfig
from precast.plugins.device.compiled_kernel import CUBIN_TARGETS
from precast.plugins.greedy_tokens.device.op_fields import MAX_VOCAB_SIZE
from precast.plugins.rms_norm.device.op_fields import MAX_FEATURES

TITLE = "device cuda"
"""In sentences."""
PORTABLE = "portable"
"""Machine code for every one of TARGETS."""
TARGETS = tuple(target.replace("_", "") for target in CUBIN_TARGETS)
MIN_CAPABILITY = 80
"""With bfloat16. Later GPUs than TARGETS compile the PTX that is always beside the machine code."""
ONNXRUNTIME_MIN = "1.31"
"""The oldest release that tests have seen place every node on the GPU."""


def plan_cuda(model: ModelConfig, config: BuildConfig) -> DevicePlan:
    """Decide what the config leaves open. Neither ONNX Runtime nor a GPU is needed.

    Raises:
        BuildError: what is asked is not available; the message says what is.
        ModuleNotFoundError: Triton, which compiles our kernels, is not installed.
    """
    targets = check_targets(config.target)
    check_attention(model, TITLE)
    _check_sizes(model)
    if config.quantization is not None:
        raise BuildError(
            f"quantization {config.quantization} is not available on {TITLE} yet; the backend tensorrt has it"
        )
    if config.group_size is not None:
        raise BuildError(f"group_size {config.group_size} has no meaning without quantization: leave it out")
    max_batch_size, max_num_tokens = plan_step_limits(config)
    return DevicePlan(
        library="onnxruntime",
        library_version=ONNXRUNTIME_MIN,
        kernel_compiler=find_kernel_compiler(TITLE, "cuda"),
        targets=targets,
        min_capability=MIN_CAPABILITY,
        quantization=None,
        separate_weights=True,
        max_batch_size=max_batch_size,
        max_num_tokens=max_num_tokens,
        layer_outputs=config.layer_outputs,
    )


def _check_sizes(model: ModelConfig) -> None:
    """Raise BuildError where the kernels of RmsNorm or GreedyTokens cannot do as much."""
    for name, most in (("hidden_size", MAX_FEATURES), ("vocab_size", MAX_VOCAB_SIZE)):
        if getattr(model, name) > most:
            raise BuildError(f"{name} {getattr(model, name)} is not available on {TITLE}; up to {most} is")


def check_targets(targets: Sequence[str] | None) -> tuple[str, ...]:
    """The targets of a build, in the order of TARGETS; PORTABLE where none are given.

    Raises:
        BuildError: there is no machine code for one of them.
    """
    if not targets or tuple(targets) == (PORTABLE,):
        return (PORTABLE,)
    for target in targets:
        if target == PORTABLE:
            raise BuildError(f"target {PORTABLE} stands alone: leave out {PORTABLE}, or the others")
        if target not in TARGETS:
            raise BuildError(
                f"target {target or repr(target)}: there is machine code for {', '.join(TARGETS)}; leave the target "
                f"out, or choose {PORTABLE}: GPUs from {MIN_CAPABILITY // 10}.{MIN_CAPABILITY % 10} on compile what "
                "they have no machine code for when they load the engine"
            )
    return tuple(target for target in TARGETS if target in targets)


def kernel_targets(targets: Sequence[str]) -> tuple[str, ...]:
    """Of CUBIN_TARGETS those that a build compiles for."""
    if tuple(targets) == (PORTABLE,):
        return CUBIN_TARGETS
    return tuple(target for target in CUBIN_TARGETS if target.replace("_", "") in targets)
