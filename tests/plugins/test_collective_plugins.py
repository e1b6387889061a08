"""The collectives' plugins for TensorRT: shapes, types, fields, and what they ask of the group when they run."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from precast.plugins import TENSORRT_OPS
from precast.plugins.collectives.device.group import GroupError, GroupSlot, Mailboxes
from precast.plugins.collectives.device.mailbox import BUFFER_BYTES
from precast.plugins.collectives.device.one_shot import one_shot_launch, one_shot_specs
from precast.plugins.device.kernel_sets import KERNELS, KERNELS_SHA256
from precast.plugins.device.kernel_spec import KernelSpec
from precast.plugins.device.op_fields import to_array
from precast.plugins.tensorrt import PLUGIN_NAMESPACE
from precast.plugins.tensorrt.creators import register_creators
from tests.plugins import fake_tensorrt

FIELDS: dict[str, dict[str, Any]] = {
    "AllReduce": {"num_ranks": 4, "dtype": "bfloat16"},
    "AllGather": {"num_ranks": 4, "num_features": 70, "root": -1, "dtype": "bfloat16"},
    "Send": {"dtype": "bfloat16"},
    "Receive": {"num_features": 64, "dtype": "bfloat16"},
}
MAILBOXES = Mailboxes(table=0x100, calls=0x200, missing=0x300, timeout_ms=500)
X, Y, STREAM = 0x1000, 0x2000, 77


class Group:
    """Writes down what it is asked."""

    def __init__(self, num_ranks: int = 4, mailboxes: Mailboxes | None = None) -> None:
        self.num_ranks, self.tensor_rank, self.mailboxes = num_ranks, 3, mailboxes
        self.calls: list[tuple[Any, ...]] = []

    def all_reduce(self, *arguments: Any) -> None:
        self.calls.append(("all_reduce", *arguments))

    def all_gather(self, *arguments: Any) -> None:
        self.calls.append(("all_gather", *arguments))

    def send(self, *arguments: Any) -> None:
        self.calls.append(("send", *arguments))

    def receive(self, *arguments: Any) -> None:
        self.calls.append(("receive", *arguments))

    def write_int32(self, *arguments: Any) -> None:
        self.calls.append(("write_int32", *arguments))


class Registry:
    """All creators, with kernels that are made up, in a TensorRT that is made up; and what they complained of."""

    def __init__(self, group: Group | None = None) -> None:
        self.errors: list[str] = []
        self.compiled: list[tuple[KernelSpec, ...]] = []
        self.opened: list[bytes] = []
        self.launched: list[tuple[Any, ...]] = []
        self.creators: dict[str, Any] = {}
        self.slot = GroupSlot()
        self.slot.install(group)
        trt = SimpleNamespace(**vars(fake_tensorrt), get_plugin_registry=lambda: self)
        register_creators(trt, self.slot, self.errors, self.compile, self.open)

    def register_creator(self, creator: Any, namespace: str) -> bool:
        assert namespace == PLUGIN_NAMESPACE
        self.creators[creator.name] = creator
        return True

    def compile(self, specs: Sequence[KernelSpec]) -> bytes:
        self.compiled.append(tuple(specs))
        return f"kernels {len(self.compiled)}".encode()

    def open(self, kernels: bytes) -> Any:
        self.opened.append(kernels)
        return SimpleNamespace(launch=lambda *launch: self.launched.append(launch))

    def make(self, op: str, node: str = "a node", without: str = "", **changes: Any) -> Any:
        arrays = {name: to_array(value) for name, value in FIELDS[op].items() if name != without}
        arrays |= {name: value if isinstance(value, np.ndarray) else to_array(value) for name, value in changes.items()}
        collection = [fake_tensorrt.PluginField(key, data, kind_of(data)) for key, data in arrays.items()]
        return self.creators[op].create_plugin(node, collection, None)

    def run(self, plugin: Any, *shape: int) -> None:
        plugin.enqueue([SimpleNamespace(dims=shape)], [], [X], [Y], 0, STREAM)


def kind_of(array: Any) -> fake_tensorrt.PluginFieldType:
    kinds = {"int32": fake_tensorrt.PluginFieldType.INT32, "int8": fake_tensorrt.PluginFieldType.CHAR}
    return kinds[array.dtype.name]


def saved(plugin: Any) -> dict[str, Any]:
    return {field.name: field.data for field in plugin.get_fields_to_serialize()}


def dims(*values: int | str) -> fake_tensorrt.DimsExprs:
    return fake_tensorrt.DimsExprs([fake_tensorrt.Dim(value) for value in values])


def test_every_op_of_plans_has_a_creator() -> None:
    creators = Registry().creators
    assert sorted(f"ai.precast.{name}/{made.plugin_version}" for name, made in creators.items()) == list(TENSORRT_OPS)
    for name, fields in FIELDS.items():
        assert [field.name for field in creators[name].field_names] == list(fields)


def test_a_creator_that_tensorrt_refuses() -> None:
    refusing = SimpleNamespace(register_creator=lambda creator, namespace: creator.name != "AllGather")
    trt = SimpleNamespace(**vars(fake_tensorrt), get_plugin_registry=lambda: refusing)
    with pytest.raises(RuntimeError, match=r"^TensorRT refused to register the plugin AllGather$"):
        register_creators(trt, GroupSlot(), [])


class TestShapesAndTypes:
    @pytest.mark.parametrize(
        ("op", "given", "expected"),
        [
            ("AllReduce", ("rows", 64), ("rows", 64)),
            ("AllGather", ("rows", 18), (4, "rows", 18)),
            ("Send", ("rows", 64), (1,)),
            ("Receive", ("tokens",), ("tokens", 64)),
        ],
    )
    def test_shapes(self, op: str, given: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
        (output,) = Registry().make(op).get_output_shapes([dims(*given)], [], fake_tensorrt.Exprs())
        assert list(output) == list(dims(*expected))

    @pytest.mark.parametrize(
        ("op", "types"),
        [
            ("AllReduce", ("half", "half")),
            ("AllGather", ("half", "half")),
            ("Send", ("half", "int32")),
            ("Receive", ("int32", "half")),
        ],
    )
    @pytest.mark.parametrize("half", ["bfloat16", "float16"])
    def test_types(self, op: str, types: tuple[str, str], half: str) -> None:
        plugin = Registry().make(op, dtype=half)
        right = [half if each == "half" else each for each in types]
        assert plugin.get_output_data_types([right[0]]) == [right[1]]
        for position in range(2):
            for dtype in ("bfloat16", "float16", "float32", "int32"):
                tensors = [fake_tensorrt.DynamicTensor(fake_tensorrt.Desc(each)) for each in right]
                tensors[position] = fake_tensorrt.DynamicTensor(fake_tensorrt.Desc(dtype))
                assert plugin.supports_format_combination(position, tensors, 1) == (dtype == right[position])
            desc = fake_tensorrt.Desc(right[position], fake_tensorrt.TensorFormat.CHW32)
            tensors[position] = fake_tensorrt.DynamicTensor(desc)
            assert not plugin.supports_format_combination(position, tensors, 1)

    @pytest.mark.parametrize("op", FIELDS)
    def test_nothing_is_written_in_place_and_no_workspace_needed(self, op: str) -> None:
        plugin = Registry().make(op)
        assert plugin.get_aliased_input(0) == -1
        assert plugin.get_workspace_size([], []) == 0
        assert plugin.num_outputs == 1


class TestFields:
    @pytest.mark.parametrize("op", FIELDS)
    def test_a_plan_gives_back_what_was_built(self, op: str) -> None:
        plugin = Registry().make(op)
        fields, loading = saved(plugin), Registry()
        again = loading.make(op, **fields)
        assert loading.errors == []
        assert loading.compiled == []
        for copy in (again, plugin.clone(), plugin.attach_to_context(None)):
            assert {name: data.tobytes() for name, data in saved(copy).items()} == {
                name: data.tobytes() for name, data in fields.items()
            }

    def test_kinds(self) -> None:
        plugin = Registry().make("AllReduce")
        kinds = {field.name: field.type.name for field in plugin.get_fields_to_serialize()}
        assert kinds == {"num_ranks": "INT32", "dtype": "CHAR", KERNELS_SHA256: "CHAR", KERNELS: "INT8"}

    @pytest.mark.parametrize(
        ("op", "changes", "text"),
        [
            ("AllReduce", {"num_ranks": 1}, "AllReduce: num_ranks is 1; it must be at least 2"),
            ("AllReduce", {"dtype": "float32"}, "AllReduce: dtype is 'float32'; the plugin has bfloat16, float16"),
            ("AllGather", {"root": 0}, "AllGather: root is 0; the device gives every rank the rows, -1"),
            ("AllGather", {"dtype": "int8"}, "AllGather: dtype is 'int8'; the plugin has bfloat16, float16"),
            ("Send", {"dtype": ""}, "Send: dtype is ''; the plugin has bfloat16, float16"),
            ("Receive", {"num_features": 0}, "Receive: num_features is 0; it must be at least 1"),
        ],
    )
    def test_those_that_make_no_sense(self, op: str, changes: dict[str, Any], text: str) -> None:
        registry = Registry()
        assert registry.make(op, node="layers.3.sum", **changes) is None
        assert registry.errors == [f"layers.3.sum: {text}"]

    @pytest.mark.parametrize("op", FIELDS)
    def test_a_missing_one(self, op: str) -> None:
        registry = Registry()
        assert registry.make(op, without="dtype") is None
        assert registry.errors == [f"a node: {op}: the plugin lacks its field dtype"]


class TestKernels:
    def test_the_first_sum_of_a_kind_carries_them(self) -> None:
        registry = Registry()
        plugins = [registry.make("AllReduce", dtype=dtype) for dtype in ("float16", "float16", "bfloat16", "float16")]
        assert registry.compiled == [one_shot_specs(4, "float16"), one_shot_specs(4, "bfloat16")]
        assert [KERNELS in saved(plugin) for plugin in plugins] == [True, False, True, False]
        assert saved(plugins[0])[KERNELS].tobytes() == b"kernels 1"

    def test_who_runs_plans_compiles_nothing(self) -> None:
        trt = SimpleNamespace(**vars(fake_tensorrt))
        registry, errors = Registry(), list[str]()
        trt.get_plugin_registry = lambda: registry
        register_creators(trt, GroupSlot(), errors)
        assert registry.make("AllReduce") is None
        assert errors == ["a node: the plan lacks the kernels one_shot_all_reduce: rebuild the engine"]


class TestRunning:
    def test_a_short_sum_goes_through_mailboxes(self) -> None:
        registry = Registry(Group(mailboxes=MAILBOXES))
        registry.run(registry.make("AllReduce"), 2, 64)
        addresses = {"x": X, "y": Y, "mailboxes": 0x100, "calls": 0x200, "missing": 0x300}
        assert registry.launched == [(one_shot_launch(128, 3, 500), addresses, STREAM)]
        assert registry.opened == [b"kernels 1"]

    @pytest.mark.parametrize(
        ("mailboxes", "shape"),
        [
            (None, (2, 64)),
            (MAILBOXES, (BUFFER_BYTES // 2 // 64 + 1, 64)),
            (MAILBOXES, (3, 63)),  # not whole vectors
        ],
    )
    def test_any_other_is_nccls(self, mailboxes: Mailboxes | None, shape: tuple[int, int]) -> None:
        group = Group(mailboxes=mailboxes)
        registry = Registry(group)
        registry.run(registry.make("AllReduce"), *shape)
        assert group.calls == [("all_reduce", X, Y, shape[0] * shape[1], "bfloat16", STREAM)]
        assert registry.opened == []

    def test_the_others(self) -> None:
        group = Group()
        registry = Registry(group)
        for op, shape in (("AllGather", (3, 18)), ("Send", (5, 64)), ("Receive", (5,))):
            registry.run(registry.make(op, dtype="float16"), *shape)
        assert group.calls == [
            ("all_gather", X, Y, 54, "float16", STREAM),
            ("send", X, 320, "float16", STREAM),
            ("write_int32", Y, 5, STREAM),
            ("receive", Y, 320, "float16", STREAM),
        ]

    def test_the_group_is_that_of_the_time(self) -> None:
        first, second = Group(), Group()
        registry = Registry(first)
        plugin = registry.make("AllGather")
        registry.run(plugin, 1, 8)
        registry.slot.install(second)
        registry.run(plugin, 1, 8)
        assert len(first.calls) == len(second.calls) == 1

    @pytest.mark.parametrize("op", ["AllReduce", "AllGather"])
    def test_a_group_of_another_size(self, op: str) -> None:
        registry = Registry(Group(num_ranks=2))
        with pytest.raises(ValueError, match="of this process has 2"):
            registry.run(registry.make(op), 1, 8)
        text = f"{op}: the plan's {op} is for 4 tensor ranks, the group of this process has 2"
        assert registry.errors == [text]

    @pytest.mark.parametrize("op", FIELDS)
    def test_without_a_group(self, op: str) -> None:
        """As while a plan is built."""
        registry = Registry(None)
        with pytest.raises(GroupError, match="it meets other ranks"):
            registry.run(registry.make(op), *((1,) if op == "Receive" else (1, 8)))
        (text,) = registry.errors
        assert text.startswith(f"{op}: it meets other ranks, and this process has joined none: ")
