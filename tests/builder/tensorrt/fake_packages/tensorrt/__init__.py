"""As much of TensorRT's Python module as it shares with TensorRT-RTX, and nothing that only the latter has.

A plan is the names of what was called. It shows that plan_process.py keeps to the common part; whether TensorRT builds
the network shows only where it is installed.
"""

from typing import Any

from tests.plugins.fake_tensorrt import *  # noqa: F403

CALLS: list[str] = []


class PreviewFeature:
    ALIASED_PLUGIN_IO_10_03 = "aliased"


class BuilderFlag:
    """Without those that only TensorRT-RTX has."""

    TF32 = "tf32"


class ILogger:
    ERROR, INTERNAL_ERROR, WARNING = "error", "internal error", "warning"


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int) -> "Network":
        CALLS.append(f"create_network({flags})")
        return Network()

    def create_builder_config(self) -> "BuilderConfig":
        return BuilderConfig()

    def create_optimization_profile(self) -> "Profile":
        return Profile()

    def build_serialized_network(self, network: "Network", config: "BuilderConfig") -> "Plan":
        return Plan(" ".join(CALLS).encode())


class Plan(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class Network:
    pass


class Profile:
    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        CALLS.append(f"{name}:{shapes[2]}".replace(" ", ""))


class BuilderConfig:
    def set_preview_feature(self, feature: str, enabled: bool) -> None:
        CALLS.append(f"{feature}={enabled}")

    def add_optimization_profile(self, profile: Profile) -> int:
        CALLS.append("profile")
        return 0


class OnnxParser:
    num_errors = 0

    def __init__(self, network: Network, logger: ILogger) -> None:
        pass

    def load_model_proto(self, data: bytes) -> bool:
        CALLS.append("load_model_proto")
        return True

    def load_initializer(self, name: str, address: int, size_bytes: int) -> bool:
        CALLS.append(f"{name}={size_bytes}")
        return True

    def parse_model_proto(self) -> bool:
        CALLS.append("parse_model_proto")
        return True


class Registry:
    def register_creator(self, creator: Any, namespace: str) -> bool:
        CALLS.append(f"register:{creator.name}:{namespace}")
        return True


def get_plugin_registry() -> Registry:
    return Registry()
