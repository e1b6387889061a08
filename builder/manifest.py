"""The manifest of an engine, from the model, the plan and the ranks that were built."""

from collections.abc import Sequence

from precast.builder.backends.base import Backend
from precast.builder.build_config import BuildConfig
from precast.builder.plan import BuildPlan
from precast.builder.ranks.built_rank import BuiltRank
from precast.checkpoints.engine_manifest import BuildInfo, EngineManifest, ModelInfo
from precast.checkpoints.model_config import ModelConfig
from precast.checkpoints.ranks.mapping import Mapping


def engine_manifest(
    model: ModelConfig,
    config: BuildConfig,
    plan: BuildPlan,
    mapping: Mapping,
    backend: Backend,
    ranks: Sequence[BuiltRank],
) -> EngineManifest:
    """The manifest of an engine of these ranks. `files` is the engine writer's to fill."""
    return EngineManifest(
        requires=tuple(sorted({name for rank in ranks for name in rank.requires})),
        backend=backend.name,
        backend_requirements=backend.requirements(plan),
        batch_invariant=backend.batch_invariant,
        reproducible=backend.reproducible,
        model=model_info(model, plan),
        build=BuildInfo(plan.dtype, plan.kv_cache_dtype, plan.tokens_per_block, config.max_seq_len, plan.notes),
        mapping=mapping,
        ranks=tuple(rank.files for rank in ranks),
        files={},
    )


def model_info(model: ModelConfig, plan: BuildPlan) -> ModelInfo:
    """What the manifest says of the model."""
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
