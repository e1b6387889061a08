"""All creators of plugins that this version has."""

from collections.abc import Callable, Sequence
from typing import Any

from precast.plugins.all_gather.tensorrt import plugin as all_gather
from precast.plugins.all_reduce.device import AllReduceFields
from precast.plugins.all_reduce.tensorrt import plugin as all_reduce
from precast.plugins.collectives.device.group import DeviceGroup
from precast.plugins.collectives.device.one_shot import one_shot_specs
from precast.plugins.device.kernel_sets import OpenLauncher
from precast.plugins.device.kernel_spec import KernelSpec
from precast.plugins.device.launcher import open_launcher as open_launcher_on_device
from precast.plugins.paged_attention.device.kernels import kernel_specs
from precast.plugins.paged_attention.device.op_fields import PluginFields
from precast.plugins.paged_attention.tensorrt import plugin as paged_attention
from precast.plugins.receive.tensorrt import plugin as receive
from precast.plugins.send.tensorrt import plugin as send
from precast.plugins.tensorrt import PLUGIN_NAMESPACE

CompileSpecs = Callable[[Sequence[KernelSpec]], bytes]
"""Compiled kernels as they lie in a plan (device/launcher.py: compress_kernels)."""


def refuse_to_compile(specs: Sequence[KernelSpec]) -> bytes:
    """For who runs plans: they bring their kernels. Raises ValueError."""
    raise ValueError(f"the plan lacks the kernels {', '.join(spec.function for spec in specs)}: rebuild the engine")


def register_creators(
    trt: Any,
    group: Callable[[], DeviceGroup],
    errors: list[str],
    compile_specs: CompileSpecs = refuse_to_compile,
    open_launcher: OpenLauncher = open_launcher_on_device,
) -> None:
    """Make every creator known to TensorRT, once in a process, before a network or a plan with plugins is read.

    Args:
        trt: The module tensorrt_rtx or tensorrt.
        group: Asked by collectives each time that they run: a GroupSlot of plugins/collectives/device/group.py.
        errors: Gets sentences where plugins fail; the first is the cause of what TensorRT then says.
        compile_specs: For who builds plans.
        open_launcher: Loads kernels onto the current device.

    Raises:
        RuntimeError: TensorRT refused one, as it does the second time.
    """

    def compile_attention(fields: PluginFields) -> bytes:
        return compile_specs(
            kernel_specs(
                fields.attributes, fields.rotary_dim, fields.num_frequencies, fields.has_qk_norm, fields.has_sinks
            )
        )

    def compile_all_reduce(fields: AllReduceFields) -> bytes:
        return compile_specs(one_shot_specs(fields.num_ranks, fields.dtype))

    creators = (
        paged_attention.make_creator(trt, compile_attention, errors, open_launcher),
        all_reduce.make_creator(trt, compile_all_reduce, group, errors, open_launcher),
        all_gather.make_creator(trt, group, errors),
        send.make_creator(trt, group, errors),
        receive.make_creator(trt, group, errors),
    )
    registry = trt.get_plugin_registry()
    for creator in creators:
        if not registry.register_creator(creator, PLUGIN_NAMESPACE):
            raise RuntimeError(f"TensorRT refused to register the plugin {creator.name}")
