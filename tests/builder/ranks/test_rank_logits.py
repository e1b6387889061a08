"""Engines of several ranks compute what the model does: their graphs, run with the ops' NumPy references."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from precast.builder.build import build_engine
from precast.builder.build_config import BuildConfig
from precast.builder.network.decoder import emit_network
from precast.builder.network.text import network_text
from precast.builder.passes.base import run_passes
from precast.builder.passes.pipeline import PIPELINE
from precast.builder.plan import BuildPlan, plan_build
from precast.builder.verify import verify_logits
from precast.builder.weights import Tensors
from precast.checkpoints.checkpoint import RankTensors, open_checkpoint
from precast.checkpoints.model_config import HeadConfig, ModelConfig
from precast.checkpoints.ranks.mapping import Mapping
from precast.checkpoints.ranks.partition import plan_partition
from precast.checkpoints.ranks.rank_model import RankModel, rank_model
from tests.builder.graph_runner import Chunk, RanksRunner, network_runner, ranks_runner
from tests.builder.rank_worlds import RandomSlices
from tests.builder.worlds import FLOAT32, LAYER, MODEL, TIED, RandomTensors, finished, with_attention, with_mlp
from tests.tiny_llama import PROMPTS, reference_logits

Tiny = Callable[[str], Path]

# Each family; biases, tied heads, a vocabulary that does not divide, one key-value head, windows.
IN_FILES = ["gqa", "mqa", "tied", "attention_bias", "mlp_bias", "odd_vocab", "mistral", "qwen2_window", "qwen3_window"]
SIZES = [(2, 1), (4, 1), (1, 2), (2, 2)]


@pytest.mark.parametrize(("tensor_size", "pipeline_size"), SIZES)
@pytest.mark.parametrize("variant", IN_FILES)
def test_several_ranks_equal_hugging_face(variant: str, tensor_size: int, pipeline_size: int, tiny_llama: Tiny) -> None:
    with open_checkpoint(tiny_llama(variant)) as checkpoint:
        plan = plan_build(checkpoint.config, BuildConfig())
        mapping = Mapping.of(tensor_size, pipeline_size)
        ranks = all_ranks(checkpoint.config, mapping, plan, lambda rank: RankTensors(checkpoint, rank))
        assert_equals_hugging_face(ranks, tiny_llama(variant))


@pytest.mark.parametrize("variant", ["tied", "qwen2_window"])
def test_the_files_of_ranks_hold_the_model(variant: str, tiny_llama: Tiny, tmp_path: Path) -> None:
    config = BuildConfig(tensor_parallel_size=2, pipeline_parallel_size=2)
    with open_checkpoint(tiny_llama(variant)) as checkpoint:
        build_engine(checkpoint, tmp_path / "engine", config)
    assert_equals_hugging_face(ranks_runner(tmp_path / "engine"), tiny_llama(variant))


def assert_equals_hugging_face(ranks: RanksRunner, path: Path) -> None:
    report = verify_logits(
        ranks,
        lambda token_ids: reference_logits(path, token_ids),
        PROMPTS,
        dtype="float32",
        reference="Hugging Face",
    )
    assert report.passed, report
    assert report.greedy_agreement == 1.0


def all_ranks(
    model: ModelConfig, mapping: Mapping, plan: BuildPlan, tensors_of: Callable[[RankModel], Tensors]
) -> RanksRunner:
    partition, runners = plan_partition(model, mapping), []
    for number in range(mapping.world_size):
        rank = rank_model(model, partition, number)
        network = emit_network(rank, plan)
        run_passes(network, PIPELINE)
        runners.append(network_runner(network, tensors_of(rank)))
    return RanksRunner(mapping, runners)


def in_memory(model: ModelConfig, tensor_size: int, pipeline_size: int) -> RanksRunner:
    """All ranks of a model of random tensors."""
    mapping, tensors = Mapping.of(tensor_size, pipeline_size), RandomTensors(model)
    return all_ranks(model, mapping, FLOAT32, lambda rank: RandomSlices(tensors, rank))


BIASED = with_mlp(with_attention(qkv_bias=True, output_bias=True), bias=True)
MODELS = {
    "biases everywhere": replace(BIASED, head=HeadConfig(bias=True)),
    "a tied head": TIED,
    "one key-value head": with_attention(num_kv_heads=1),
    "a vocabulary smaller than a rank's rows": replace(MODEL, vocab_size=5),
}


@pytest.mark.parametrize(("tensor_size", "pipeline_size"), [*SIZES, (2, 3), (4, 4)])
@pytest.mark.parametrize("name", MODELS)
def test_several_ranks_compute_what_one_does(name: str, tensor_size: int, pipeline_size: int) -> None:
    model = replace(MODELS[name], layers=MODELS[name].layers * 4)
    alone = network_runner(finished(model), RandomTensors(model))
    ranks = in_memory(model, tensor_size, pipeline_size)
    token_ids = [t % model.vocab_size for t in range(20)]
    np.testing.assert_allclose(ranks(token_ids), alone(token_ids), rtol=1e-4, atol=1e-4)


def test_chunks_of_several_sequences_are_each_as_alone() -> None:
    """Bit for bit: a row's sums are over ranks, whatever runs beside it."""
    model = replace(MODEL, layers=(LAYER,) * 2)
    first, second = list(range(7, 30)), list(range(3, 12))
    alone = in_memory(model, 2, 2).step([Chunk(first, 0, [0, 1])], range(23))
    ranks = in_memory(model, 2, 2)
    ranks.step([Chunk(first[:10], 0, [4, 2]), Chunk(second, 0, [1])], [])
    both = ranks.step([Chunk(second[-1:], 9, [1]), Chunk(first[10:], 10, [4, 2])], range(14))
    np.testing.assert_array_equal(both[1:], alone[10:])


def test_ranks_of_a_stage_differ_only_in_what_they_read_of_the_vocabulary() -> None:
    """The same nodes with the same attributes, so that one description of a step fits all of them."""
    partition = plan_partition(MODEL, Mapping.of(2, 1))
    texts = []
    for number in range(2):
        network = emit_network(rank_model(MODEL, partition, number), FLOAT32)
        run_passes(network, PIPELINE)
        texts.append(network_text(network))
    assert texts[0] != texts[1]
    assert texts[0].replace("row_start=0", "row_start=32") == texts[1]


GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("stage", [0, 1])
def test_a_rank_line_by_line(stage: int) -> None:
    """PRECAST_BLESS=1 writes the files anew; read the difference before you commit it."""
    model = replace(MODEL, layers=(LAYER,) * 2)
    network = emit_network(rank_model(model, plan_partition(model, Mapping.of(2, 2)), 2 * stage + 1), FLOAT32)
    run_passes(network, PIPELINE)
    path, text = GOLDEN / f"rank_of_stage_{stage}.txt", network_text(network)
    if os.environ.get("PRECAST_BLESS") == "1":
        path.write_text(text)
    assert text == path.read_text()
