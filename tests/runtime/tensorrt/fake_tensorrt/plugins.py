"""What a plugin derives from, and the registry in which engines find its creator."""

from typing import Any

from tests.runtime.tensorrt.fake_tensorrt.enums import PluginFieldType


class IPluginV3:
    pass


class IPluginV3OneCore:
    pass


class IPluginV3OneBuildV2:
    pass


class IPluginV3OneRuntime:
    pass


class IPluginCreatorV3One:
    name: str
    plugin_version: str
    plugin_namespace: str


class PluginField:
    def __init__(self, name: str = "", data: Any = None, type: PluginFieldType = PluginFieldType.UNKNOWN) -> None:  # noqa: A002 - TensorRT's name
        self.name, self.data, self.type = name, data, type


class PluginFieldCollection(list[PluginField]):
    pass


class IPluginRegistry:
    """Creators by name, version and namespace; those of its parent too."""

    def __init__(self, parent: "IPluginRegistry | None" = None) -> None:
        self._parent = parent
        self._creators: dict[tuple[str, str, str], Any] = {}

    @property
    def all_creators(self) -> list[Any]:
        return list(self._creators.values())

    def register_creator(self, creator: Any, plugin_namespace: str = "") -> bool:
        """False if there is one like it."""
        key = (creator.name, creator.plugin_version, plugin_namespace)
        if key in self._creators:
            return False
        self._creators[key] = creator
        return True

    def deregister_creator(self, creator: Any) -> bool:
        for key, known in tuple(self._creators.items()):
            if known is creator:
                del self._creators[key]
                return True
        return False

    def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> Any:  # noqa: A002 - TensorRT's name
        found = self._creators.get((type, version, plugin_namespace))
        if found is None and self._parent is not None:
            return self._parent.get_creator(type, version, plugin_namespace)
        return found


_REGISTRY = IPluginRegistry()


def get_plugin_registry() -> IPluginRegistry:
    return _REGISTRY


def reset_plugins() -> None:
    """For tests: as if the module were new, where a real one keeps its plugins until the process ends."""
    for creator in _REGISTRY.all_creators:
        _REGISTRY.deregister_creator(creator)
