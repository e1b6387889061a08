"""What the process that builds a rank is told and answers, as JSON.

One job goes in on standard input; one message a line comes out on standard output:

    {"progress": [stage, done_bytes, total_bytes]}
    {"built": BuiltRank}                                    the last line of a rank that was built
    {"error": {"kind", "text", "errno", "filename"}}        the last line of one that cannot be
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from precast.builder.errors import BuildError, UnsupportedModelError
from precast.builder.passes.base import PassError
from precast.builder.plan import BuildPlan, DevicePlan
from precast.builder.ranks.built_rank import BuiltRank
from precast.checkpoints.engine_kv import KvCacheSpec, KvGroupSpec
from precast.checkpoints.engine_manifest import FileEntry, RankFiles
from precast.checkpoints.errors import CheckpointError
from precast.checkpoints.ranks.mapping import Mapping
from precast.checkpoints.ranks.partition import Partition

ERRORS: dict[str, type[ValueError]] = {
    kind.__name__: kind for kind in (BuildError, UnsupportedModelError, PassError, CheckpointError)
}
"""What a job's process may say is wrong with a build; of a class below these the nearest one above is named."""
KNOWN_ERRORS: tuple[type[ValueError] | type[OSError], ...] = (OSError, *ERRORS.values())


@dataclass(frozen=True)
class RankJob:
    """Everything that one rank's build follows from.

    Attributes:
        checkpoint: Its directory, absolute.
        tokenizer: That of its tokenizer, absolute.
        output: Where the engine is written, absolute.
        dump_graphs: A directory for this rank's graphs, or "".
        parent_pid: Of the process that wants it: this one ends with that.
    """

    checkpoint: str
    tokenizer: str
    output: str
    rank: int
    partition: Partition
    plan: BuildPlan
    backend: str
    dump_graphs: str
    parent_pid: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "RankJob":
        fields: dict[str, Any] = json.loads(text)
        partition, plan = fields["partition"], fields["plan"]
        fields["partition"] = Partition(Mapping(**partition["mapping"]), tuple(partition["stage_layers"]))
        fields["plan"] = _plan_from_json(plan)
        return cls(**fields)


def _plan_from_json(fields: dict[str, Any]) -> BuildPlan:
    device = fields["device"]
    if device is not None:
        device = DevicePlan(**{**device, "targets": tuple(device["targets"])})
    return BuildPlan(**{**fields, "notes": tuple(fields["notes"]), "device": device})


def built_to_json(built: BuiltRank) -> dict[str, Any]:
    return asdict(built)


def built_from_json(value: dict[str, Any]) -> BuiltRank:
    files = value["files"]
    groups = tuple(KvGroupSpec(**group) for group in files["kv_groups"])
    caches = tuple(KvCacheSpec(**cache) for cache in files["kv_caches"])
    return BuiltRank(
        RankFiles(files["graph"], files["weights"], groups, caches, files["network_sha256"]),
        tuple(value["requires"]),
        None if value["weights"] is None else FileEntry(**value["weights"]),
    )


def error_to_json(error: ValueError | OSError) -> dict[str, Any]:
    if isinstance(error, OSError):
        return {"kind": "OSError", "text": error.strerror, "errno": error.errno, "filename": error.filename}
    kind = next(base.__name__ for base in type(error).__mro__ if base.__name__ in ERRORS)
    return {"kind": kind, "text": str(error)}


def error_from_json(rank: int, value: dict[str, Any]) -> Exception:
    """The error of a rank's build: its sentence with the rank's number, an OSError as it was."""
    if value["kind"] == "OSError":
        return OSError(value["errno"], value["text"], value["filename"])
    return ERRORS[value["kind"]](f"rank {rank}: {value['text']}")
