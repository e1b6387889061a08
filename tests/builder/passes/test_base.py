"""The promises that every pass makes, kept by the base class and the pipeline."""

from pathlib import Path

import onnx
import pytest

from precast.builder.network.network import IntegrityError, Network
from precast.builder.network.text import network_text
from precast.builder.passes.base import InvariantError, Pass, PassError, run_passes
from precast.builder.passes.pipeline import PIPELINE
from tests.builder.worlds import emitted


class RenameHead(Pass):
    """Changes something, and says so unless told otherwise."""

    name = "rename_head"

    def __init__(self, reports: bool = True) -> None:
        self.reports = reports

    def apply(self, network: Network) -> bool:
        network.graph[-1].name = "renamed"
        return self.reports


class Nothing(Pass):
    name = "nothing"

    def apply(self, network: Network) -> bool:
        return False


class DropHead(Pass):
    """Leaves the graph's output undefined."""

    name = "drop_head"

    def apply(self, network: Network) -> bool:
        network.graph.remove(network.graph[-1])
        return True


class WantsMore(Nothing):
    name = "wants_more"

    def requires(self, network: Network) -> None:
        raise InvariantError("node embedding is not what it should be")


class PromisesMore(Nothing):
    name = "promises_more"

    def ensures(self, network: Network) -> None:
        raise InvariantError("node lm_head is still there")


class Broken(Nothing):
    name = "broken"

    def apply(self, network: Network) -> bool:
        raise KeyError("layout")


def test_modified_is_true() -> None:
    assert RenameHead()(emitted())
    assert not Nothing()(emitted())


def test_a_pass_that_reports_wrongly_is_caught() -> None:
    with pytest.raises(InvariantError, match=r"^apply returned modified=False, but the network says otherwise$"):
        RenameHead(reports=False)(emitted())
    network = emitted()
    network.graph[-1].name = "renamed"
    with pytest.raises(InvariantError, match=r"^apply returned modified=True, but the network says otherwise$"):
        RenameHead()(network)


def test_a_pass_that_breaks_the_network_is_caught() -> None:
    with pytest.raises(IntegrityError, match=r"reads 'logits', which nothing before it defines$"):
        DropHead()(emitted())


@pytest.mark.parametrize(
    ("culprit", "reason"),
    [
        (WantsMore(), "node embedding is not what it should be"),
        (PromisesMore(), "node lm_head is still there"),
        (DropHead(), "the graph's output reads 'logits', which nothing before it defines"),
        (Broken(), "'layout'"),
    ],
    ids=lambda part: getattr(part, "name", None),
)
def test_an_error_names_the_pass_and_those_before_it(culprit: Pass, reason: str) -> None:
    passes = [Nothing(), RenameHead(), culprit, Nothing()]
    with pytest.raises(PassError) as caught:
        run_passes(emitted(), passes)
    assert str(caught.value) == f"pass {culprit.name} failed (passes before it: nothing, rename_head): {reason}"
    assert caught.value.__cause__ is not None


def test_an_error_of_the_first_pass() -> None:
    with pytest.raises(PassError, match=r"^pass broken failed \(passes before it: none\): 'layout'$"):
        run_passes(emitted(), [Broken()])


def test_names_are_the_modules() -> None:
    for network_pass in PIPELINE:
        assert type(network_pass).__module__ == f"precast.builder.passes.{network_pass.name}"


def test_the_graph_is_dumped_after_every_pass(tmp_path: Path) -> None:
    network = emitted()
    start = network_text(network)
    run_passes(network, PIPELINE, dump_graphs=tmp_path / "deep" / "er")
    stems = ["00_emitted", *(f"{index:02}_{network_pass.name}" for index, network_pass in enumerate(PIPELINE, 1))]
    files = sorted(path.name for path in (tmp_path / "deep" / "er").iterdir())
    assert files == sorted(f"{stem}.{suffix}" for stem in stems for suffix in ("onnx", "txt"))
    assert (tmp_path / "deep/er/00_emitted.txt").read_text() == start
    assert (tmp_path / "deep/er" / f"{stems[-1]}.txt").read_text() == network_text(network)


def test_a_dumped_graph_opens_in_other_tools(tmp_path: Path) -> None:
    run_passes(emitted(), PIPELINE, dump_graphs=tmp_path)
    model = onnx.load(tmp_path / "01_merge_parallel_linears.onnx", load_external_data=False)
    assert [node.name for node in model.graph.node][:3] == [
        "embedding",
        "layers.0.mixer_norm",
        "layers.0.attention.qkv",
    ]
    assert {tensor.data_location for tensor in model.graph.initializer} == {onnx.TensorProto.EXTERNAL}


def test_dumping_changes_nothing(tmp_path: Path) -> None:
    plain, dumped = emitted(), emitted()
    run_passes(plain, PIPELINE)
    run_passes(dumped, PIPELINE, dump_graphs=tmp_path)
    assert network_text(plain) == network_text(dumped)
