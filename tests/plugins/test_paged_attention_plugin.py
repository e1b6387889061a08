"""PagedAttention's plugin for TensorRT: shapes, types, fields, kernels. tests/builder/tensorrt builds plans with it."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from precast.plugins.device.launcher import DeviceError
from precast.plugins.paged_attention.device.launches import StepShape, launches, workspace
from precast.plugins.paged_attention.device.op_fields import (
    FIELD_TYPES,
    KERNELS,
    KERNELS_SHA256,
    PluginFields,
)
from precast.plugins.paged_attention.schema import PagedAttentionAttributes
from precast.plugins.paged_attention.tensorrt.plugin import make_creator
from precast.plugins.tensorrt import PLUGIN_NAMESPACE
from tests.plugins import fake_tensorrt as trt

ATTRIBUTES = PagedAttentionAttributes(
    num_heads=8,
    num_kv_heads=2,
    head_dim=32,
    scale=0.125,
    kv_layout="kvrow.bf16/1",
    tokens_per_block=16,
    rope_scaling=1.5,
    window=7,
    qk_norm_epsilon=1e-6,
    rope_start=3,
    logit_softcap=50.0,
)
FIELDS = PluginFields(ATTRIBUTES, rotary_dim=32, num_frequencies=2, has_qk_norm=True, has_sinks=True)
BLOCK_ELEMENTS = 2 * 2 * 16 * 32


class Creator:
    """A creator with kernels that are made up, and what it had to complain of."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.compiled: list[PluginFields] = []
        self.opened: list[bytes] = []
        self.launched: list[tuple[Any, ...]] = []
        self.open_error = ""
        self.creator = make_creator(trt, self.compile, self.errors, self.open)

    def open(self, kernels: bytes) -> Any:
        """A launcher that only writes down what it was asked to launch."""
        if self.open_error:
            raise DeviceError(self.open_error)
        self.opened.append(kernels)
        return SimpleNamespace(launch=lambda *launch: self.launched.append(launch))

    def run(self, plugin: Any, pool: int = 0x5000, num_tokens: int = 6) -> None:
        """Of two sequences, with tables of three blocks."""
        descs = [SimpleNamespace(dims=dims) for dims in ((num_tokens, 384), (3,), (2,), (2, 3))]
        inputs = [0x1000 * (index + 1) for index in range(9)]
        plugin.enqueue(descs, [], inputs, [0xA000, pool], 1 << 30, 99)

    def compile(self, fields: PluginFields) -> bytes:
        self.compiled.append(fields)
        if fields.attributes.window == 13:
            raise ValueError("no kernels for 13")
        return f"kernels {len(self.compiled)}".encode()

    def make(self, fields: PluginFields = FIELDS, name: str = "layers.0.attention", **changes: Any) -> Any:
        arrays = fields.to_arrays() | changes
        collection = [trt.PluginField(key, data, trt.PluginFieldType.INT8) for key, data in arrays.items()]
        return self.creator.create_plugin(name, collection, None)


def dims(*values: int | str) -> trt.DimsExprs:
    return trt.DimsExprs([trt.Dim(value) for value in values])


def inputs() -> list[trt.DimsExprs]:
    return [
        dims("tokens", 12 * 32),
        dims("sequences+1"),
        dims("sequences"),
        dims("sequences", "blocks"),
        dims("num_blocks", BLOCK_ELEMENTS),
        dims(2, 16),
        dims(32),
        dims(32),
        dims(8),
    ]


class TestFields:
    @pytest.mark.parametrize(
        "fields",
        [
            FIELDS,
            PluginFields(
                replace(ATTRIBUTES, kv_layout="kvrow.f16/1", window=0), 0, 0, has_qk_norm=False, has_sinks=False
            ),
        ],
    )
    def test_they_come_back_from_arrays(self, fields: PluginFields) -> None:
        arrays = fields.to_arrays()
        assert set(arrays) == set(FIELD_TYPES)
        read = PluginFields.from_arrays(arrays)
        # TensorRT has no field of 64-bit floats that a node's attribute could be.
        close = replace(read.attributes, qk_norm_epsilon=fields.attributes.qk_norm_epsilon)
        assert replace(read, attributes=close) == fields
        assert read.attributes.qk_norm_epsilon == pytest.approx(fields.attributes.qk_norm_epsilon, rel=1e-7)

    def test_a_text_may_end_with_a_zero(self) -> None:
        arrays = FIELDS.to_arrays() | {"kv_layout": np.frombuffer(b"kvrow.bf16/1\0", np.int8)}
        assert PluginFields.from_arrays(arrays).attributes.kv_layout == "kvrow.bf16/1"

    def test_inputs_are_counted(self) -> None:
        assert FIELDS.num_inputs == 9
        assert replace(FIELDS, rotary_dim=0).num_inputs == 8
        assert replace(FIELDS, has_qk_norm=False).num_inputs == 7
        assert replace(FIELDS, has_sinks=False).num_inputs == 8

    def test_the_fields_beside_the_ops_attributes(self) -> None:
        arrays = FIELDS.to_arrays()
        assert arrays["logit_softcap"].tolist() == [50.0]
        assert arrays["has_sinks"].tolist() == [1]
        assert FIELD_TYPES["logit_softcap"] is float
        assert FIELD_TYPES["has_sinks"] is int

    def test_a_layout_of_the_cpu_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"kv_layout is kv16\.bf16/1; the plugin has kvrow\.bf16/1, kvrow\.f16/1$"):
            replace(FIELDS, attributes=replace(ATTRIBUTES, kv_layout="kv16.bf16/1"))


class TestShapes:
    def test_output_and_pool(self) -> None:
        made = Creator()
        output, pool = made.make().get_output_shapes(inputs(), [], trt.Exprs())
        assert list(output) == list(dims("tokens", 8 * 32))
        assert list(pool) == list(dims("num_blocks", BLOCK_ELEMENTS))
        assert made.errors == []

    @pytest.mark.parametrize(
        ("index", "shape", "text"),
        [
            (0, dims("tokens", 256), "PagedAttention: qkv has 256 columns, its fields say 384"),
            (4, dims("num_blocks", 64), f"PagedAttention: kv has 64 columns, its fields say {BLOCK_ELEMENTS}"),
        ],
    )
    def test_a_wrong_width_is_said(self, index: int, shape: trt.DimsExprs, text: str) -> None:
        made, given = Creator(), inputs()
        given[index] = shape
        made.make().get_output_shapes(given, [], trt.Exprs())
        assert made.errors == [text]

    def test_a_wrong_number_of_inputs_is_said(self) -> None:
        made = Creator()
        made.make().get_output_shapes(inputs()[:6], [], trt.Exprs())
        assert made.errors == ["PagedAttention has 6 inputs, its fields say 9"]

    def test_the_workspace_is_that_of_the_greatest_step(self) -> None:
        greatest = [(64, 384), (9,), (8,), (8, 20), (1000, BLOCK_ELEMENTS)]
        tensors = [trt.DynamicTensor(trt.Desc("any"), shape) for shape in greatest]
        size = Creator().make().get_workspace_size(tensors, [])
        assert size == workspace(ATTRIBUTES, StepShape(64, 8, 20)).size_bytes > 64 * 8 * 32 * 2


class TestTypes:
    RIGHT = ("bfloat16", *["int32"] * 3, "bfloat16", *["float32"] * 4, "bfloat16", "bfloat16")

    def supports(self, plugin: Any, position: int, dtype: str, **desc: Any) -> bool:
        tensors = [trt.DynamicTensor(trt.Desc(each)) for each in self.RIGHT]
        tensors[position] = trt.DynamicTensor(trt.Desc(dtype, **desc))
        supported: bool = plugin.supports_format_combination(position, tensors, 9)
        return supported

    def test_every_tensor_has_one_type(self) -> None:
        plugin = Creator().make()
        for position, right in enumerate(self.RIGHT):
            for dtype in ("bfloat16", "float16", "float32", "int32"):
                assert self.supports(plugin, position, dtype) == (dtype == right), (position, dtype)

    def test_the_layout_says_which_half(self) -> None:
        plugin = Creator().make(replace(FIELDS, attributes=replace(ATTRIBUTES, kv_layout="kvrow.f16/1")))
        assert self.supports(plugin, 0, "float16")
        assert not self.supports(plugin, 0, "bfloat16")

    def test_only_rows_one_after_the_other(self) -> None:
        assert not self.supports(Creator().make(), 0, "bfloat16", format=trt.TensorFormat.CHW32)

    def test_outputs_have_the_types_of_qkv_and_pool(self) -> None:
        assert Creator().make().get_output_data_types(["a", "b", "c", "d", "e", "f"]) == ["a", "e"]

    def test_the_pool_is_written_in_place(self) -> None:
        plugin = Creator().make()
        assert [plugin.get_aliased_input(output) for output in (0, 1)] == [-1, 4]


class TestKernels:
    def saved(self, plugin: Any) -> dict[str, Any]:
        return {field.name: field.data for field in plugin.get_fields_to_serialize()}

    def test_the_first_plugin_of_a_kind_carries_them(self) -> None:
        made = Creator()
        other = replace(FIELDS, has_qk_norm=False)
        plugins = [made.make(), made.make(), made.make(other), made.make(other)]
        assert made.compiled == [PluginFields.from_arrays(fields.to_arrays()) for fields in (FIELDS, other)]
        saved = [self.saved(plugin) for plugin in plugins]
        assert [KERNELS in fields for fields in saved] == [True, False, True, False]
        hashes = [fields[KERNELS_SHA256].tobytes() for fields in saved]
        assert hashes[0] == hashes[1] != hashes[2] == hashes[3]
        assert saved[0][KERNELS].tobytes() == b"kernels 1"

    def test_clones_are_equal(self) -> None:
        plugin = Creator().make()
        for copy in (plugin.clone(), plugin.attach_to_context(None)):
            one, other = self.saved(plugin), self.saved(copy)
            assert {name: data.tobytes() for name, data in one.items()} == {
                name: data.tobytes() for name, data in other.items()
            }

    def test_a_plan_gives_them_back_in_any_order(self) -> None:
        made = Creator()
        carrier, other = self.saved(made.make()), self.saved(made.make())
        loading = Creator()
        plugins = [loading.make(**fields) for fields in (other, carrier)]
        assert loading.compiled == []
        assert loading.errors == []
        assert [KERNELS in self.saved(plugin) for plugin in plugins] == [False, True]
        assert self.saved(plugins[1])[KERNELS].tobytes() == b"kernels 1"

    def test_kernels_that_were_damaged_are_refused(self) -> None:
        saved = self.saved(Creator().make())
        saved[KERNELS] = np.frombuffer(b"kernels 2", np.int8)
        made = Creator()
        assert made.make(**saved) is None
        assert "layers.0.attention: PagedAttention: the plan's kernels have the SHA-256 " in made.errors[0]


class TestErrors:
    """What is said where the session looks; a creator's exceptions may not reach TensorRT's C++."""

    def test_a_missing_field(self) -> None:
        made = Creator()
        arrays = FIELDS.to_arrays()
        del arrays["scale"], arrays["window"]
        collection = [trt.PluginField(key, data, trt.PluginFieldType.INT8) for key, data in arrays.items()]
        assert made.creator.create_plugin("a node", collection, None) is None
        assert made.errors == ["a node: PagedAttention: the plugin lacks its field scale, window"]

    def test_kernels_that_cannot_be_compiled(self) -> None:
        made = Creator()
        assert made.make(replace(FIELDS, attributes=replace(ATTRIBUTES, window=13))) is None
        assert made.errors == ["layers.0.attention: no kernels for 13"]

    def test_what_fails_while_it_runs(self) -> None:
        made = Creator()
        made.open_error = "no device"
        with pytest.raises(DeviceError, match="no device"):
            made.run(made.make())
        assert made.errors == ["PagedAttention: no device"]

    def test_another_pool(self) -> None:
        made = Creator()
        with pytest.raises(ValueError, match="in place"):
            made.run(made.make(), pool=512)
        assert made.errors == [
            "PagedAttention: PagedAttention writes its pool in place, at 0x5000; TensorRT gives 0x200 for its output"
        ]
        assert made.launched == []


class TestRunning:
    def test_a_step_is_the_launches_on_the_given_addresses(self) -> None:
        made = Creator()
        plugin = made.make()
        made.run(plugin)
        made.run(plugin.clone())
        assert made.opened == [b"kernels 1"]  # once for all plugins with these kernels
        shape = StepShape(6, 2, 3)
        expected = launches(ATTRIBUTES, shape, has_rope=True, has_norm=True, has_sinks=True)
        assert [launch for launch, _, _ in made.launched] == 2 * list(expected)
        regions = {region.name: 1 << 30 | region.offset for region in workspace(ATTRIBUTES, shape).regions}
        required = ("qkv", "query_starts", "context_lengths", "block_tables", "kv")
        names = (*required, "inv_freq", "q_norm", "k_norm", "sinks")
        addresses = {name: 0x1000 * (index + 1) for index, name in enumerate(names)}
        for _, given, stream in made.launched:
            assert given == {**addresses, "output": 0xA000, **regions}
            assert stream == 99

    def test_a_step_of_single_tokens_needs_no_context_kernel(self) -> None:
        made = Creator()
        made.run(made.make(), num_tokens=2)
        assert "paged_attention_context" not in {launch.kernel for launch, _, _ in made.launched}


def test_the_creator_says_what_it_makes() -> None:
    creator = Creator().creator
    assert (creator.name, creator.plugin_version, creator.plugin_namespace) == ("PagedAttention", "1", PLUGIN_NAMESPACE)
    assert [field.name for field in creator.field_names] == list(FIELD_TYPES)
