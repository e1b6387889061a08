"""The process that builds one plan; plan_job.py says what it is told and answers.

TensorRT runs in a process of its own: it keeps the memory of what it has built, some of its errors end the process, and
its parser finds the library under a name that only an environment variable can give it (build_plan.py).
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from precast.builder.backends.tensorrt.plan_job import PlanJob
from precast.builder.processes import say, start_process
from precast.checkpoints.durable_files import os_errors_named, reserve, write_all
from precast.checkpoints.weights_reader import read_weights_index
from precast.plugins.collectives.device.group import DeviceGroup, GroupError
from precast.plugins.device.kernel_spec import KernelSpec
from precast.plugins.tensorrt.creators import register_creators
from precast.plugins.tensorrt.logger import make_logger


class PlanError(Exception):
    """TensorRT refused something; the message has its words."""


def main() -> int:
    """Build the plan of the job on standard input. Returns the exit status, 1 where an error was said."""
    job = PlanJob.from_json(sys.stdin.read())
    with start_process(job.parent_pid) as answers:
        try:
            say(answers, {"built": {"plan_bytes": _PlanBuilder(job, answers).build()}})
        except PlanError as error:
            say(answers, {"error": str(error)})
            return 1
        except OSError as error:
            # A library that cannot be loaded is an OSError without a number.
            has_number = error.errno is not None
            say(answers, {"os_error": [*error.args[:2], error.filename]} if has_number else {"error": str(error)})
            return 1
        except RuntimeError as error:  # TensorRT's own
            say(answers, {"error": f"TensorRT cannot build the plan: {error}"})
            return 1
    return 0


class _PlanBuilder:
    """Builds one plan with the library of the job."""

    def __init__(self, job: PlanJob, answers: TextIO) -> None:
        self._job, self._answers = job, answers
        self._trt: Any = importlib.import_module(job.library)
        self._messages: list[str] = []
        self._plugin_errors: list[str] = []
        self._logger = make_logger(self._trt, self._messages)
        self._weights: np.memmap[Any, Any] | None = None

    def build(self) -> int:
        """Write the plan; returns its size in bytes."""
        trt, job = self._trt, self._job
        register_creators(trt, _refuse_to_meet, self._plugin_errors, self._compile_kernels)
        builder = trt.Builder(self._logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, self._logger)
        self._say_stage("reading the graph")
        self._parse(parser)
        config = self._configure(builder)
        self._say_stage("building the plan")
        plan = builder.build_serialized_network(network, config)
        if plan is None or self._plugin_errors:
            raise PlanError(f"TensorRT cannot build the plan: {self._cause()}")
        with os_errors_named(Path(job.plan)), Path(job.plan).open("xb", buffering=0) as file:
            reserve(file, plan.nbytes)
            write_all(file, memoryview(plan))
        return int(plan.nbytes)

    def _parse(self, parser: Any) -> None:
        """Read the graph, whose initialisers lie in the weights file, which stays mapped until the plan is built."""
        is_read = parser.load_model_proto(Path(self._job.graph).read_bytes())
        if is_read and self._job.weights:
            index = read_weights_index(self._job.weights)
            self._weights = np.memmap(self._job.weights, np.uint8, mode="r")
            for tensor in index.tensors:
                address = self._weights.ctypes.data + tensor.offset
                if not parser.load_initializer(tensor.spec.name, address, tensor.spec.size_bytes):
                    raise PlanError(f"TensorRT refused the initialiser {tensor.spec.name}: {self._cause()}")
        if not is_read or not parser.parse_model_proto():
            said = [parser.get_error(number).desc() for number in range(parser.num_errors)]
            raise PlanError(f"TensorRT cannot read the graph: {self._cause(said)}")

    def _configure(self, builder: Any) -> Any:
        trt, job = self._trt, self._job
        config = builder.create_builder_config()
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
        if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # only TensorRT-RTX would allocate while it runs
            # All memory is known when a plan is loaded, before KV pools take the rest, and its steps can be recorded.
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        for ranges in job.profiles:
            profile = builder.create_optimization_profile()
            for entry in ranges:
                profile.set_shape(entry.name, entry.least, entry.common, entry.greatest)
            if config.add_optimization_profile(profile) < 0:
                raise PlanError(f"TensorRT refused an optimisation profile: {self._cause()}")
        targets = [target for target in job.targets if target.startswith("sm")]
        if targets:
            config.num_compute_capabilities = len(targets)
        for number, target in enumerate(targets):
            if not config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), number):
                raise PlanError(f"TensorRT refused the target {target}: {self._cause()}")
        return config

    def _compile_kernels(self, specs: Sequence[KernelSpec]) -> bytes:
        from precast.builder.backends.compile_kernels import compile_beside_each_other
        from precast.plugins.device.launcher import compress_kernels

        self._say_stage("compiling kernels")
        targets = [f"sm_{value}" for value in self._job.kernel_capabilities]
        return compress_kernels(compile_beside_each_other(specs, targets))

    def _say_stage(self, stage: str) -> None:
        say(self._answers, {"stage": stage})

    def _cause(self, said: list[str] | None = None) -> str:
        """The first messages: later ones say that something failed because of these."""
        return " | ".join([*self._plugin_errors, *self._messages, *(said or [])][:3]) or "it does not say why"


def _refuse_to_meet() -> DeviceGroup:
    """The group of plugins, which do not run here: there are no other ranks yet."""
    raise GroupError("TensorRT runs plugins by which ranks meet while it builds; that is not supported")
