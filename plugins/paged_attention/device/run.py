"""What the op does when it runs: the launches of a step, on the addresses that it is given."""

from collections.abc import Sequence

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
    addresses = dict(zip(input_names(plugin_fields), inputs, strict=True)) | {"output": output}
    attributes = plugin_fields.attributes
    for region in workspace(attributes, shape).regions:
        addresses[region.name] = workspace_address + region.offset
    for launch in launches(
        attributes, shape, plugin_fields.has_rope, plugin_fields.has_qk_norm, plugin_fields.has_sinks
    ):
        launcher.launch(launch, addresses, stream)
