"""Building, saving, loading, shutting down, being forgotten."""

import copy
import filecmp
import gc
import json
import logging
import os
import pickle
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from precast import LLM, RequestOutput, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def num_engine_threads() -> int:
    return sum(thread.name == "precast-events" for thread in threading.enumerate())


# ------------------------------------------------------------------------------------------------ build and save


def test_a_saved_engine_gives_the_same_tokens(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    with LLM(tiny_llama("gqa")) as built:
        expected = built.generate(["print(", "Grüße"], GREEDY, use_tqdm=False)
        built.save(tmp_path / "engine")
    with LLM(tmp_path / "engine") as loaded:
        outputs = loaded.generate(["print(", "Grüße"], GREEDY, use_tqdm=False)
    assert [output.outputs for output in outputs] == [output.outputs for output in expected]


def test_saving_copies_every_byte(tiny_engine: Callable[..., Path], tmp_path: Path) -> None:
    with LLM(tiny_engine("gqa")) as llm:
        llm.save(tmp_path / "engine")
    assert files_below(tmp_path / "engine") == files_below(tiny_engine("gqa"))


def test_saving_over_an_engine_replaces_it(tiny_engine: Callable[..., Path], tmp_path: Path) -> None:
    target = tmp_path / "engine"
    shutil.copytree(tiny_engine("tied"), target)
    with LLM(target) as old, LLM(tiny_engine("gqa")) as new:
        expected = old.generate("print(", GREEDY, use_tqdm=False).outputs[0].token_ids
        new.save(target)
        assert old.generate("print(", GREEDY, use_tqdm=False).outputs[0].token_ids == expected  # it has its files open
    assert files_below(target) == files_below(tiny_engine("gqa"))
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_saving_over_itself_changes_nothing(tiny_engine: Callable[..., Path], tmp_path: Path) -> None:
    target = tmp_path / "engine"
    shutil.copytree(tiny_engine("gqa"), target)
    with LLM(target) as llm:
        llm.save(target)
        llm.generate("print(", GREEDY, use_tqdm=False)
    assert files_below(target) == files_below(tiny_engine("gqa"))


def test_a_built_engine_lies_in_a_temporary_directory(
    tiny_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with LLM(tiny_llama("gqa")) as llm:
        assert tmp_path in llm.engine_dir.parents
    assert list(tmp_path.iterdir()) == []


def test_a_workspace_keeps_the_engine(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    for _ in range(2):  # the second build replaces the first
        with LLM(tiny_llama("gqa"), workspace=tmp_path) as llm:
            assert llm.engine_dir == tmp_path / "engine"
    LLM(tmp_path / "engine").shutdown()


def test_build_options_reach_the_builder(tiny_llama: Callable[..., Path]) -> None:
    options: dict[str, Any] = {"kv_cache_dtype": "float32", "tokens_per_block": 32, "max_seq_len": 64}
    with LLM(tiny_llama("gqa"), dtype="bfloat16", **options) as llm:
        wanted = {"dtype": "bfloat16", "kv_cache_dtype": "float32", "tokens_per_block": 32, "max_seq_len": 64}
        assert {name: llm.info[name] for name in wanted} == wanted


def test_a_failed_build_leaves_nothing(
    tiny_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ValueError, match="tokens_per_block must be a positive multiple of 16"):
        LLM(tiny_llama("gqa"), tokens_per_block=17)
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------- generation config


def with_generation_config(checkpoint: Path, folder: Path, config: dict[str, Any]) -> Path:
    copied = Path(shutil.copytree(checkpoint, folder / "model"))
    (copied / "generation_config.json").write_text(json.dumps(config))
    return copied


def test_generation_config_gives_the_defaults(
    tiny_llama: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {"temperature": 0.25, "top_k": 7, "top_p": 0.5, "min_p": 0.125, "repetition_penalty": 1.5}
    config = {**asked, "max_new_tokens": 9, "eos_token_id": 1}
    checkpoint = with_generation_config(tiny_llama("gqa"), tmp_path, config)
    caplog.set_level(logging.INFO, logger="precast")
    with LLM(checkpoint) as llm:
        defaults = SamplingParams(**asked, max_tokens=9)  # type: ignore[arg-type]
        assert llm.get_default_sampling_params() == defaults
        assert llm.generate([5], use_tqdm=False).outputs[0].length == 9
    said = "sampling defaults from the checkpoint's generation_config: "
    assert [record.getMessage() for record in caplog.records if record.getMessage().startswith(said)] == [
        said + "temperature=0.25, top_k=7, top_p=0.5, min_p=0.125, repetition_penalty=1.5, max_tokens=9"
    ]


def test_without_a_generation_config_the_defaults_are_sampling_params_own(tiny_engine: Callable[..., Path]) -> None:
    with LLM(tiny_engine("gqa")) as llm:
        assert llm.get_default_sampling_params() == SamplingParams()


def test_a_generation_config_that_cannot_work(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = with_generation_config(tiny_llama("gqa"), tmp_path, {"top_p": 5})
    with pytest.raises(ValueError, match=r"generation_config.json: top_p must be in \(0, 1\], got 5"):
        LLM(checkpoint)


# ------------------------------------------------------------------------------------------------- ends of a life


def test_after_shutdown_everything_says_so(tiny_engine: Callable[..., Path], tmp_path: Path) -> None:
    llm = LLM(tiny_engine("gqa"))
    llm.shutdown()
    llm.shutdown()
    uses: list[Callable[[], object]] = [
        lambda: llm.generate("print(", use_tqdm=False),
        lambda: next(llm.stream("print(")),
        lambda: llm.save(tmp_path / "engine"),
        lambda: llm.generate_async("print("),
        lambda: llm.preprocess("print("),
        llm.get_stats,
        llm.get_kv_cache_events,
        llm.reset_prefix_cache,
        lambda: llm.counters,
        lambda: llm.info,
        lambda: llm.__enter__().generate("print("),
    ]
    for use in uses:
        with pytest.raises(RuntimeError, match=r"^LLM is shutting down$"):
            use()
    assert num_engine_threads() == 0


def test_the_end_of_the_block_is_a_shutdown(tiny_engine: Callable[..., Path]) -> None:
    with LLM(tiny_engine("gqa")) as llm:
        llm.generate("print(", GREEDY, use_tqdm=False)
    with pytest.raises(RuntimeError, match="LLM is shutting down"):
        llm.generate("print(", use_tqdm=False)


def test_shutdown_cancels_what_runs(tiny_engine: Callable[..., Path]) -> None:
    llm = LLM(tiny_engine("gqa"), max_batch_size=1, max_num_tokens=1)
    results: list[list[RequestOutput]] = []
    thread = threading.Thread(target=lambda: results.append(llm.generate([[5]] * 200, ENDLESS, use_tqdm=False)))
    thread.start()
    while llm.counters["output_tokens"] < 3:
        time.sleep(0.001)
    llm.shutdown()
    thread.join(timeout=10)
    assert not thread.is_alive()
    reasons = [output.outputs[0].finish_reason for output in results[0]]
    assert reasons[-1] == "cancelled"
    assert set(reasons) <= {"length", "cancelled"}


def test_a_forgotten_llm_ends_its_engine(tiny_engine: Callable[..., Path]) -> None:
    llm = LLM(tiny_engine("gqa"))
    llm.generate("print(", GREEDY, use_tqdm=False)
    engine = weakref.ref(llm._engine)
    assert num_engine_threads() == 1
    del llm
    gc.collect()
    assert engine() is None
    assert num_engine_threads() == 0


def test_a_forgotten_llm_removes_what_it_has_built(
    tiny_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    llm = LLM(tiny_llama("gqa"))
    assert len(list(tmp_path.iterdir())) == 1
    del llm
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_load_leaves_no_thread(tiny_engine: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copy(tiny_engine("gqa") / "tokenizer" / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read: "):
        LLM(tiny_engine("gqa"), tokenizer=tmp_path)
    assert num_engine_threads() == 0


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_cannot_be_pickled_or_copied(tiny_engine: Callable[..., Path], duplicate: Callable[[LLM], object]) -> None:
    with LLM(tiny_engine("gqa")) as llm, pytest.raises(TypeError, match="cannot be pickled; save it and load"):
        duplicate(llm)


def test_a_build_is_reproducible(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        with LLM(tiny_llama("gqa")) as llm:
            llm.save(tmp_path / name)
    comparison = filecmp.dircmp(tmp_path / "one", tmp_path / "two")
    assert files_below(tmp_path / "one") == files_below(tmp_path / "two")
    assert not comparison.left_only
    assert not comparison.right_only


def test_many_lives_leave_no_open_files(tiny_engine: Callable[..., Path]) -> None:
    def num_open_files() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    LLM(tiny_engine("gqa")).shutdown()
    before = num_open_files()
    for _ in range(5):
        LLM(tiny_engine("gqa")).shutdown()
    assert num_open_files() == before
