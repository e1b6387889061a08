"""What the op does when it runs: the launches of a step, on the addresses that it is given."""

import functools
from collections.abc import Sequence

from precast.plugins.device.launch import Launch
from precast.plugins.device.launcher import Launcher
from precast.plugins.paged_attention.device.launches import StepShape, launches, workspace
from precast.plugins.paged_attention.device.op_fields import PluginFields

_REQUIRED_INPUTS = ("qkv", "query_starts", "context_lengths", "block_tables", "kv")


def input_names(plugin_fields: PluginFields) -> tuple[str, ...]:
    """The op's names of the plugin's inputs, in order; those that are absent are left out."""
    optional = (
        ("inv_freq",) * plugin_fields.has_rope
        + ("q_norm", "k_norm") * plugin_fields.has_qk_norm
        + ("sinks",) * plugin_fields.has_sinks
    )
    return (*_REQUIRED_INPUTS, *optional)


def run_step(
    plugin_fields: PluginFields,
    launcher: Launcher,
    shape: StepShape,
    inputs: Sequence[int],
    output: int,
    workspace_address: int,
    stream: int,
) -> None:
    """Enqueue everything that the op does in a step on `stream`; nothing waits.

    Args:
        inputs: Device addresses, in the order of `input_names`.
        output: That of the rows.
        workspace_address: Of as many bytes as `workspace` says for the greatest step.

    Raises:
        DeviceError: the driver refused a launch.
        ValueError: it has other inputs than its fields say.
    """
    names, regions, step = _plan(plugin_fields, shape)
    addresses = dict(zip(names, inputs, strict=True))
    addresses["output"] = output
    for name, offset in regions:
        addresses[name] = workspace_address + offset
    for launch in step:
        launcher.launch(launch, addresses, stream)


@functools.lru_cache(maxsize=256)  # the layers of a step share one or two; shapes come again
def _plan(
    plugin_fields: PluginFields, shape: StepShape
) -> tuple[tuple[str, ...], tuple[tuple[str, int], ...], tuple[Launch, ...]]:
    """Names of inputs, where regions of the workspace begin, and the launches."""
    attributes = plugin_fields.attributes
    regions = tuple((region.name, region.offset) for region in workspace(attributes, shape).regions)
    step = launches(attributes, shape, plugin_fields.has_rope, plugin_fields.has_qk_norm, plugin_fields.has_sinks)
    return input_names(plugin_fields), regions, step
