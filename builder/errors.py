"""What can go wrong while an engine is built, as exceptions the front door prints in one line."""


class BuildError(ValueError):
    """The checkpoint cannot be built as asked; the message names the values and the next step."""


class UnsupportedModelError(BuildError):
    """The model config asks for something that the builder's blocks do not implement."""


class BuildCacheError(BuildError):
    """The build cache cannot be used; the message names its directory."""
