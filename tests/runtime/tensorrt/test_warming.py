"""What TensorRT compiles on a GPU is kept beside the plan, and taken again on the same one and on no other."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from precast.checkpoints.engine_dir import read_manifest, verify_files
from precast.runtime.device.worker import WARM_VARIABLE, open_rank
from precast.runtime.structs import SessionConfigStruct
from precast.runtime.tensorrt.runtime_cache import FILE_NAME
from tests.runtime.tensorrt.fake_engine import put_fakes_in_place
from tests.runtime.tensorrt.fake_packages.cuda.bindings import driver
from tests.runtime.tensorrt.worlds import FakeEngine, Logits, World, error

PROMPT = [0, 17, 133, 42, 201]


@pytest.fixture
def engine(fake_engine: FakeEngine, tmp_path: Path) -> Path:
    """One that may be written to."""
    return Path(shutil.copytree(fake_engine("float16"), tmp_path / "engine"))


@pytest.fixture
def opened(engine: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., World]]:
    """`opened(warm=True, capability=(8, 6))`: the worker's session on a new machine. One at a time."""

    def open_world(*, warm: bool = False, **settings: object) -> World:
        put_fakes_in_place(monkeypatch)
        driver.reset(**settings)
        monkeypatch.setenv(WARM_VARIABLE, "1" if warm else "0")
        config = SessionConfigStruct(
            engine_path=bytes(engine), kv_cache_bytes=1 << 20, max_batch_size=3, max_num_tokens=32, num_kv_groups=1
        )
        return World(open_rank(config, None), read_manifest(engine))

    yield open_world
    driver.reset()


def close(world: World) -> None:
    world.session.close()
    assert driver.misuse == [], driver.misuse
    assert driver.leaks() == [], driver.leaks()


def test_decoding_is_recorded_before_the_first_request(
    opened: Callable[..., World], reference: Callable[..., Logits]
) -> None:
    """And nothing of that is seen: ids begin with 1, and blocks hold what requests write."""
    world = opened(warm=True)
    recorded = [call for call, *_ in driver.calls].count("cuGraphInstantiate")
    assert recorded == 3  # of 1, 2 and 3 sequences
    expected = reference("float16", "float16")
    logits = world.run(world.step([world.prompt(PROMPT[:4], 0)])).logits
    assert error(logits, expected(PROMPT[:4])[-1:]) < 0.004
    first = len(driver.calls)
    logits = world.run(world.step([world.prompt(PROMPT[4:], 0, start=4)])).logits
    assert error(logits, expected(PROMPT)[-1:]) < 0.004
    called = [call for call, *_ in driver.calls[first:]]
    assert "cuGraphLaunch" in called
    assert "execute_async_v3" not in called
    close(world)


def test_what_is_compiled_is_taken_again(
    opened: Callable[..., World], engine: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    close(opened(warm=True))
    kept = engine / "rank0" / FILE_NAME
    data = kept.read_bytes()
    assert capfd.readouterr().err.startswith(f"{kept}: ")
    close(opened())
    assert capfd.readouterr().err == ""  # it is taken, and nothing is said
    assert kept.read_bytes() == data
    verify_files(engine, read_manifest(engine))  # which the engine's files are as before


def test_an_engine_that_was_never_warmed_says_nothing(
    opened: Callable[..., World], engine: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    close(opened())
    assert capfd.readouterr().err == ""
    assert not (engine / "rank0" / FILE_NAME).exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"capability": (8, 6)}, "it is of gpu Fake GPU, compute capability 8.9, and this is Fake GPU, compute"),
        ({"name": "NVIDIA L4"}, "it is of gpu Fake GPU, compute capability 8.9, and this is NVIDIA L4, compute"),
        ({"driver_version": 13010}, "it is of driver 13000, and this is 13010"),
    ],
    ids=["capability", "name", "driver"],
)
def test_another_machine_compiles_for_itself(
    settings: dict[str, object], said: str, opened: Callable[..., World], capfd: pytest.CaptureFixture[str]
) -> None:
    close(opened(warm=True))
    capfd.readouterr()
    close(opened(**settings))
    (line,) = capfd.readouterr().err.splitlines()
    assert f"is not used: {said}" in line
    assert line.endswith("; `precast warm` writes one for this machine")


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"[]\nabc", b"\xff\xfe\n", None], ids=repr)
def test_a_damaged_file_harms_nobody(
    damage: bytes | None, opened: Callable[..., World], engine: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """None: it is cut short."""
    close(opened(warm=True))
    kept = engine / "rank0" / FILE_NAME
    kept.chmod(0o644)
    kept.write_bytes(kept.read_bytes()[:-1] if damage is None else damage)
    capfd.readouterr()
    close(opened())
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"{kept} is not used: it ")


def test_a_file_that_cannot_be_read(
    opened: Callable[..., World], engine: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = engine / "rank0" / FILE_NAME
    kept.mkdir()
    close(opened())
    assert capfd.readouterr().err.startswith(f"{kept} is not used: it cannot be read (Is a directory); ")


def test_shapes_that_cannot_be_run_leave_nothing(opened: Callable[..., World], engine: Path) -> None:
    with pytest.raises(RuntimeError, match="TensorRT cannot run"):
        opened(warm=True, fail={"call": "execute_async_v3", "number": 1})
    assert not (engine / "rank0" / FILE_NAME).exists()
    assert driver.misuse == []
    assert driver.leaks() == []
