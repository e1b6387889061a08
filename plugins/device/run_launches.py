"""Enqueues what an op launches, with its workspace among the buffers."""

from collections.abc import Iterable, Mapping

from precast.plugins.device.launch import Launch, Workspace
from precast.plugins.device.launcher import Launcher
from precast.plugins.device.op_call import OpCall


def run_launches(
    launcher: Launcher, launches: Iterable[Launch], buffers: Mapping[str, int], workspace: Workspace, call: OpCall
) -> None:
    """Enqueue launches on the call's stream. `buffers` are addresses of inputs and outputs.

    Raises:
        DeviceError: the driver refused a launch.
    """
    regions = {region.name: call.workspace_address + region.offset for region in workspace.regions}
    addresses = {**buffers, **regions}
    for launch in launches:
        launcher.launch(launch, addresses, call.stream)
