"""Local directories and hub ids. The hub is a cache directory, or a server on this machine."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from precast.checkpoints.errors import CheckpointNotFoundError, MissingDependencyError
from precast.checkpoints.hub import resolve_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RESOLVE = """
import sys
from precast.checkpoints.errors import CheckpointNotFoundError
from precast.checkpoints.hub import resolve_model
try:
    print(resolve_model(sys.argv[1], revision=sys.argv[2] or None))
except CheckpointNotFoundError as error:
    sys.exit(f"refused: {error}")
"""


def resolve(hub_id: str, cache: Path, *, revision: str = "", **environment: str) -> str:
    """resolve_model in a process of its own, because huggingface_hub reads its settings once. Returns the
    path it prints, or "refused: ..."."""
    cache.mkdir(exist_ok=True)
    import_path = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
    result = subprocess.run(
        [sys.executable, "-c", RESOLVE, hub_id, revision],
        env={
            **os.environ,
            "PYTHONPATH": import_path,
            "HF_HOME": str(cache),
            "NO_PROXY": "127.0.0.1",
            "HF_HUB_OFFLINE": "0",
            **environment,
        },
        cwd=cache,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = (result.stdout if result.returncode == 0 else result.stderr).strip().splitlines()
    assert lines, result
    return lines[-1]


def fill_cache(cache: Path, hub_id: str, directory: Path) -> Path:
    """Put `directory` into the cache as the main revision of `hub_id`. Returns the snapshot."""
    repository = cache / "hub" / ("models--" + hub_id.replace("/", "--"))
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


@pytest.mark.parametrize("model", ["./missing", "/missing/model", "a/b/c", "../x", "owner/", " ", Path("owner/name")])
def test_a_path_that_does_not_exist_is_not_looked_up(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointNotFoundError) as caught:
        resolve_model(model)
    assert str(caught.value) == f"{model}: no such directory"


def test_without_huggingface_hub_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"owner/tiny: no such directory; .* pip install huggingface_hub"):
        resolve_model("owner/tiny")


@pytest.mark.parametrize("variant", ["gqa", "bin"])
def test_a_cached_model_is_found_offline(variant: str, tmp_path: Path, tiny_llama: Callable[[str], Path]) -> None:
    snapshot = fill_cache(tmp_path, "owner/tiny", tiny_llama(variant))
    assert resolve("owner/tiny", tmp_path, HF_HUB_OFFLINE="1") == str(snapshot)


def test_offline_and_not_cached_says_how_to_give_a_path(tmp_path: Path) -> None:
    answer = resolve("owner/tiny", tmp_path, revision="v2", HF_HUB_OFFLINE="1")
    assert answer.startswith(
        "refused: owner/tiny: no such directory, and the Hugging Face hub did not give it at revision 'v2': "
    )
    assert "Give the path of a local directory" in answer
    assert "`hf download owner/tiny --local-dir DIR`" in answer


class FakeHub(BaseHTTPRequestHandler):
    """Serves `files` as the repository owner/tiny at `COMMIT`, and knows no other."""

    files: ClassVar[dict[str, bytes]] = {}
    downloaded: ClassVar[set[str]] = set()

    def do_HEAD(self) -> None:
        self.reply()

    def do_GET(self) -> None:
        self.reply()

    def reply(self) -> None:
        route = self.path.partition("?")[0]
        name = route.removeprefix(f"/owner/tiny/resolve/{COMMIT}/")
        if route.startswith("/api/models/owner/tiny/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in self.files.items()
            ]
            self.send(json.dumps(entries).encode())
        elif route.startswith("/api/models/owner/tiny"):
            siblings = [{"rfilename": name} for name in self.files]
            self.send(json.dumps({"id": "owner/tiny", "sha": COMMIT, "siblings": siblings}).encode())
        elif name in self.files:
            self.downloaded.add(name)
            self.send(self.files[name])
        else:
            self.send(b"{}", status=404)

    def send(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hash(body)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def fake_hub() -> Iterator[str]:
    """The address of a hub on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_only_what_is_needed_is_downloaded(
    fake_hub: str, tmp_path: Path, tiny_llama: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {path.name: path.read_bytes() for path in tiny_llama("gqa").iterdir()}
    unwanted = ("README.md", "pytorch_model.bin", "consolidated.safetensors", "original/a.safetensors", "model.gguf")
    monkeypatch.setattr(FakeHub, "files", {**wanted, **dict.fromkeys(unwanted, b"x")})
    monkeypatch.setattr(FakeHub, "downloaded", set())
    path = Path(resolve("owner/tiny", tmp_path, HF_ENDPOINT=fake_hub))
    assert {file.name: file.read_bytes() for file in path.iterdir()} == wanted
    assert FakeHub.downloaded == wanted.keys()


def test_a_repository_that_does_not_exist_is_named(fake_hub: str, tmp_path: Path) -> None:
    answer = resolve("owner/other", tmp_path, HF_ENDPOINT=fake_hub)
    assert answer.startswith("refused: owner/other: no such directory, and the Hugging Face hub did not give it: ")


def test_a_hub_that_cannot_be_reached_is_no_traceback(tmp_path: Path) -> None:
    answer = resolve("owner/tiny", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert answer.startswith("refused: owner/tiny: no such directory, and the Hugging Face hub did not give it: ")
