"""What can be wrong with a checkpoint: one class per way to fail, so that a caller can react without reading
the text.

Every message is one sentence or two that name the file, the values and, where there is one, the next step.
"""


class CheckpointError(ValueError):
    """The checkpoint cannot be used."""


class CheckpointNotFoundError(CheckpointError):
    """There is no such directory, or the hub did not give the model."""


class MissingDependencyError(CheckpointError):
    """The checkpoint needs a Python package that is not installed."""


class ConfigError(CheckpointError):
    """A JSON file is missing, malformed, or has a value of the wrong type or range."""


class UnsupportedArchitectureError(CheckpointError):
    """No family converts this architecture."""


class UnsupportedRopeError(CheckpointError):
    """The rotary embedding is of a kind that is not implemented."""


class UnsupportedActivationError(CheckpointError):
    """The feed-forward's activation is not implemented."""


class UnsupportedDtypeError(CheckpointError):
    """Weights are stored in a dtype, or quantised in a format, that is not implemented."""


class WeightFilesError(CheckpointError):
    """The directory holds no weight files that can be read, or its shard index names ones that are not there."""


class CorruptFileError(CheckpointError):
    """A weight file is truncated or damaged."""


class DuplicateTensorError(CheckpointError):
    """A tensor is stored more than once."""


class MissingTensorError(CheckpointError):
    """A tensor that the config calls for is not in the files."""


class UnexpectedTensorError(CheckpointError):
    """The files hold a tensor that the config does not call for."""


class TensorShapeError(CheckpointError):
    """A tensor has another shape than the config calls for."""


class PartitionError(CheckpointError):
    """The model cannot be spread over ranks as asked; the message has the sizes that work."""


class WriteError(CheckpointError):
    """A checkpoint cannot be written: its place is taken, or the system refuses."""


def first_line(error: Exception) -> str:
    """The first line of another library's error, or its class where it says nothing; ends in a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    return line if line.endswith((".", "!", "?")) else line + "."
