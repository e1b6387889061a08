"""The manifest of an engine, from the model, the plan and the finished network."""

from precast.builder.backends.base import Backend
from precast.builder.build_config import BuildConfig
from precast.builder.network.network import Network
from precast.builder.passes.check_supported import versioned_op
from precast.builder.plan import BuildPlan
from precast.checkpoints.engine_manifest import BuildInfo, EngineManifest, Mapping, ModelInfo, RankFiles
from precast.checkpoints.model_config import ModelConfig
from precast.checkpoints.weights_index import PLAIN_LAYOUT
from precast.plugins.domain import DOMAIN


def engine_manifest(
    model: ModelConfig, config: BuildConfig, plan: BuildPlan, network: Network, backend: Backend, rank: RankFiles
) -> EngineManifest:
    """The manifest of a one-rank engine. `files` is the engine writer's to fill."""
    return EngineManifest(
        requires=requirements(network),
        backend=backend.name,
        backend_requirements=backend.requirements,
        batch_invariant=backend.batch_invariant,
        reproducible=backend.reproducible,
        model=_model_info(model, plan),
        build=BuildInfo(plan.dtype, plan.kv_cache_dtype, plan.tokens_per_block, config.max_seq_len, plan.notes),
        mapping=Mapping(),
        ranks=(rank,),
        files={},
    )


def requirements(network: Network) -> tuple[str, ...]:
    """Every versioned op and layout that a runtime must know to run the network, sorted."""
    ops = {versioned_op(node) for node in network.graph if node.domain == DOMAIN}
    layouts = {recipe.layout for recipe in network.weights.values()} - {PLAIN_LAYOUT}
    kv_layouts = {cache.layout for cache in network.kv_caches}
    return tuple(sorted(ops | layouts | kv_layouts))


def _model_info(model: ModelConfig, plan: BuildPlan) -> ModelInfo:
    return ModelInfo(
        architecture=model.architecture,
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        num_layers=len(model.layers),
        max_seq_len=plan.max_seq_len,
        bos_token_id=model.bos_token_id,
        eos_token_ids=model.eos_token_ids,
        pad_token_id=model.pad_token_id,
    )
