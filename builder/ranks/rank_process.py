"""The process that builds one rank; rank_processes.py starts it and rank_job.py says what it is told and answers."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from precast.builder.backends import get_backend
from precast.builder.processes import say, start_process
from precast.builder.ranks.built_rank import BuiltRank, build_rank
from precast.builder.ranks.rank_job import KNOWN_ERRORS, RankJob, built_to_json, error_to_json
from precast.checkpoints.checkpoint import open_checkpoint
from precast.checkpoints.ranks.rank_model import rank_model
from precast.checkpoints.weights_index import TensorSpec
from precast.checkpoints.weights_writer import WeightsWriter


class _Output:
    """Files of the engine whose directory another process made."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open_weights(self, path: str, specs: Sequence[TensorSpec]) -> WeightsWriter:
        (self.path / path).parent.mkdir(parents=True, exist_ok=True)
        return WeightsWriter(self.path / path, specs)


def main() -> int:
    """Build the rank of the job on standard input. Returns the exit status, 1 where an error was said."""
    job = RankJob.from_json(sys.stdin.read())
    with start_process(job.parent_pid) as answers:
        try:
            say(answers, {"built": built_to_json(_build(job, answers))})
        except KNOWN_ERRORS as error:
            say(answers, {"error": error_to_json(error)})
            return 1
    return 0


def _build(job: RankJob, answers: TextIO) -> BuiltRank:
    with open_checkpoint(job.checkpoint, tokenizer=job.tokenizer) as checkpoint:
        return build_rank(
            checkpoint,
            rank_model(checkpoint.config, job.partition, job.rank),
            job.plan,
            get_backend(job.backend),
            _Output(Path(job.output)),
            dump_graphs=Path(job.dump_graphs) if job.dump_graphs else None,
            progress=lambda stage, done, total: say(answers, {"progress": [stage, done, total]}),
        )
