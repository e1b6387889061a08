"""Local directories and hub ids. The hub is a cache directory, or a server on this machine."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import shutil
import sys
from typing import Any

import huggingface_hub
import pytest

from precast.checkpoints.checkpoint import open_checkpoint
from precast.checkpoints.errors import CheckpointNotFoundError, MissingDependencyError
from precast.checkpoints.hub import resolve_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of a machine that is offline."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


def fill_cache(cache: Path, hub_id: str, directory: Path) -> Path:
    """Put `directory` into the cache as the main revision of `hub_id`. Returns the snapshot."""
    repository = cache / ("models--" + hub_id.replace("/", "--"))
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(directory, repository / "snapshots" / COMMIT))


def test_a_directory_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model(tmp_path) == tmp_path
    assert resolve_model(str(tmp_path)) == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert resolve_model("owner/name") == Path("owner/name")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/owner") == tmp_path / "owner"


def test_a_directory_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="is a local directory, which has no revision 'main'"):
        resolve_model(tmp_path, revision="main")


def test_a_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointNotFoundError, match=r"model\.safetensors is a file; give the directory"):
        resolve_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize("model", ["./missing", "/missing/model", "a/b/c", "../x", "", "owner/", Path("owner/name")])
def test_a_path_that_does_not_exist_is_not_looked_up(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    if model == "":
        model = "./ "
    with pytest.raises(CheckpointNotFoundError, match="no such directory$"):
        resolve_model(model)


@pytest.mark.parametrize("variant", ["gqa", "bin"])
def test_a_cached_model_opens_offline(
    variant: str, hub_cache: Path, tiny_llama: Callable[[str], Path]
) -> None:
    snapshot = fill_cache(hub_cache, "owner/tiny", tiny_llama(variant))
    with open_checkpoint("owner/tiny") as checkpoint:
        assert checkpoint.path == snapshot
        assert checkpoint.config.vocab_size == 320


def test_offline_and_not_cached_says_how_to_give_a_path(hub_cache: Path) -> None:
    with pytest.raises(CheckpointNotFoundError) as caught:
        resolve_model("owner/tiny", revision="v2")
    message = str(caught.value)
    assert message.startswith("owner/tiny: no such directory, and the Hugging Face hub did not give it at revision 'v2'")
    assert "Give the path of a local directory" in message
    assert "`hf download owner/tiny --local-dir DIR`" in message
    assert "\n" not in message


def test_without_huggingface_hub_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match="pip install huggingface_hub"):
        resolve_model("owner/tiny")


class FakeHub(BaseHTTPRequestHandler):
    """Serves `files` as the repository owner/tiny at `COMMIT`, and knows no other."""

    files: dict[str, bytes] = {}
    requested: list[str] = []

    def do_HEAD(self) -> None:
        self.reply(with_body=False)

    def do_GET(self) -> None:
        self.reply(with_body=True)

    def reply(self, *, with_body: bool) -> None:
        route = self.path.partition("?")[0]
        prefix = f"/owner/tiny/resolve/{COMMIT}/"
        if route.startswith("/api/models/owner/tiny"):
            self.send(self.listing(route), with_body)
        elif route.startswith(prefix) and route.removeprefix(prefix) in self.files:
            name = route.removeprefix(prefix)
            self.requested.append(name)
            self.send(self.files[name], with_body)
        else:
            self.send(b"{}", with_body, status=404, headers={"X-Error-Code": "RepoNotFound"})

    def listing(self, route: str) -> bytes:
        if "/tree/" in route:
            entries = [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in self.files.items()]
            return json.dumps(entries).encode()
        siblings = [{"rfilename": name} for name in self.files]
        return json.dumps({"id": "owner/tiny", "sha": COMMIT, "siblings": siblings}).encode()

    def send(self, body: bytes, with_body: bool, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        common = {"Content-Length": str(len(body)), "ETag": f'"{hash(body)}"', "X-Repo-Commit": COMMIT}
        for key, value in {**common, **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def fake_hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    """A hub on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(FakeHub, "requested", [])
    yield FakeHub
    server.shutdown()
    thread.join()
    server.server_close()


def test_only_what_is_needed_is_downloaded(
    fake_hub: type[FakeHub], tiny_llama: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {path.name: path.read_bytes() for path in tiny_llama("gqa").iterdir()}
    unwanted = ("README.md", "pytorch_model.bin", "consolidated.safetensors", "original/model.safetensors", "model.gguf")
    monkeypatch.setattr(fake_hub, "files", {**wanted, **dict.fromkeys(unwanted, b"x")})
    path = resolve_model("owner/tiny")
    assert {file.name for file in path.iterdir()} == wanted.keys()
    assert set(fake_hub.requested) == wanted.keys()


def test_a_repository_that_does_not_exist_is_named(fake_hub: type[FakeHub]) -> None:
    with pytest.raises(CheckpointNotFoundError, match="owner/other: no such directory, and the Hugging Face hub did not"):
        resolve_model("owner/other")
