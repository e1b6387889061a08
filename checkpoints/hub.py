"""Where a model is: a local directory, or a repository of the Hugging Face hub, downloaded into its cache."""

import os
import re
from pathlib import Path

from precast.checkpoints.companion_files import COMPANION_FILES
from precast.checkpoints.errors import CheckpointNotFoundError, MissingDependencyError, first_line

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""`owner/name`, or `name` for a few old repositories."""

SAFETENSORS_FILES = ("*.safetensors", "model.safetensors.index.json")
TORCH_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
UNWANTED_FILES = ("*/*", "consolidated*")
"""Sub-folders, and copies of the weights in the layout of the model's authors."""


def resolve_model(model: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None) -> Path:
    """The local directory of `model`, which is a path or the id of a hub repository.

    A directory that exists is taken for what it is and nothing is downloaded. Otherwise a string that can be
    a hub id is looked up in the hub's cache and on the hub; `HF_HUB_OFFLINE`, `HF_HOME` and the other settings
    of huggingface_hub apply. Weights are downloaded as safetensors, and as .bin only where there are none.

    Args:
        revision: Branch, tag or commit of a hub repository.
        token: Access token of the hub; None: the one stored by `hf auth login`, if any.

    Raises:
        CheckpointNotFoundError: There is no such directory, and the hub does not give it either.
        MissingDependencyError: A hub id, and huggingface_hub is not installed.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if revision is not None:
            raise CheckpointNotFoundError(f"{path} is a local directory, which has no revision {revision!r}")
        return path
    if path.exists():
        raise CheckpointNotFoundError(f"{path} is a file; give the directory that holds config.json and the weights")
    if not isinstance(model, str) or not HUB_ID.fullmatch(model):
        raise CheckpointNotFoundError(f"{os.fspath(model)}: no such directory")
    directory = _download(model, (*COMPANION_FILES, *SAFETENSORS_FILES), revision, token)
    if not any(directory.glob("*.safetensors")):
        directory = _download(model, (*COMPANION_FILES, *TORCH_FILES), revision, token)
    return directory


def _download(hub_id: str, patterns: tuple[str, ...], revision: str | None, token: str | None) -> Path:
    """The snapshot of a repository with the files that match, none of them in a sub-folder."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise MissingDependencyError(
            f"{hub_id}: no such directory; to download it from the Hugging Face hub: pip install huggingface_hub"
        ) from error
    # HfHubHTTPError extends the base error of the HTTP library in use, which also covers lost connections.
    failures: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, HFValidationError, OSError)
    try:
        snapshot = huggingface_hub.snapshot_download(
            hub_id, revision=revision, token=token, allow_patterns=list(patterns), ignore_patterns=list(UNWANTED_FILES)
        )
    except failures as error:
        raise CheckpointNotFoundError(
            f"{hub_id}: no such directory, and the Hugging Face hub did not give it"
            f"{'' if revision is None else f' at revision {revision!r}'}: {first_line(error)} "
            "Give the path of a local directory that holds config.json, the tokenizer and *.safetensors; "
            f"where there is a network, `hf download {hub_id} --local-dir DIR` makes one."
        ) from error
    return Path(snapshot)
