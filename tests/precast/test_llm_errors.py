"""Bad requests, bad arguments and damaged engines: one clear error each, and nothing has run."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from precast import LLM, SamplingParams
from precast.checkpoints.engine_errors import CorruptEngineError, EngineError
from precast.runtime import EngineLoadError, ErrorCode, NativeError


@pytest.fixture(scope="module")
def llm(tiny_engine: Callable[..., Path]) -> Iterator[LLM]:
    with LLM(tiny_engine("gqa")) as llm:
        yield llm


@pytest.fixture
def copy(tiny_engine: Callable[..., Path], tmp_path: Path) -> Path:
    """An engine that a test may damage."""
    return Path(shutil.copytree(tiny_engine("gqa"), tmp_path / "engine"))


def change_manifest(engine: Path, **members: Any) -> None:
    path = engine / "engine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | members))


# ------------------------------------------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["print(", ""], "prompt 1 is empty"),
        ([[5], []], "prompt 1 is empty"),
        ([[5], [5, 320]], "prompt 1 has token id 320 at position 1, outside the vocabulary of 320"),
        ([-1], "the prompt has token id -1 at position 0, outside the vocabulary of 320"),
        ([2**40], f"the prompt has token id {2**40} at position 0, outside the vocabulary of 320"),
        (
            ["print(", [5] * 256],
            (
                "prompt 1 has 256 tokens, and max_seq_len 256 must hold it and at least one more: shorten it, set "
                "truncate_prompt_tokens, or load with a larger max_seq_len or kv_cache_bytes"
            ),
        ),
        ({"promt": "print("}, 'the prompt must be {"prompt": str} or {"prompt_token_ids": list of int}, got a dict '),
        (["a", "b"], "1 sampling_params for 2 prompts: give one for all, or one each"),
        ("a\ud800", "'utf-8' codec can't encode character '\\ud800' in position 1: surrogates not allowed"),
    ],
)
def test_a_bad_prompt_is_refused_before_anything_runs(llm: LLM, inputs: Any, message: str) -> None:
    params: Any = [SamplingParams()] if inputs == ["a", "b"] else SamplingParams()
    before = llm.counters
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        llm.generate(inputs, params, use_tqdm=False)
    assert str(caught.value).startswith(message)
    assert llm.counters == before


@pytest.mark.parametrize(
    "params", [{"temperature": 0}, [{"temperature": 0}], "greedy"], ids=["dict", "list of dict", "str"]
)
def test_sampling_params_of_another_type(llm: LLM, params: Any) -> None:
    before = llm.counters
    with pytest.raises(TypeError, match=r"^sampling_params must be SamplingParams or .*, got (dict|str)$"):
        llm.generate(["a"], params, use_tqdm=False)
    assert llm.counters == before


def test_an_empty_list_of_sampling_params_is_not_the_default(llm: LLM) -> None:
    with pytest.raises(ValueError, match="0 sampling_params for 1 prompts"):
        llm.generate(["a"], [], use_tqdm=False)


def test_after_a_refusal_it_goes_on(llm: LLM) -> None:
    with pytest.raises(ValueError, match="empty"):
        llm.generate("", use_tqdm=False)
    assert llm.generate("print(", SamplingParams(max_tokens=2), use_tqdm=False).outputs[0].finish_reason == "length"


# ------------------------------------------------------------------------------------------------ bad arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float32"}, "dtype cannot change it. Build another one: precast build .* --dtype float32$"),
        (
            {"tokens_per_block": 32, "kv_cache_dtype": "bfloat16"},
            (
                "kv_cache_dtype, tokens_per_block cannot change it. Build another one: "
                "precast build CHECKPOINT --output DIR --kv-cache-dtype bfloat16 --tokens-per-block 32$"
            ),
        ),
        ({"revision": "main"}, "revision cannot change it. Build another one: .* --revision main$"),
        ({"workspace": "here"}, "workspace is where a checkpoint is built, leave it out"),
        ({"max_seq_length": 3}, r"unknown option max_seq_length; did you mean max_seq_len\?"),
        ({"backend": "pytorch"}, "backend='pytorch' runs models through PyTorch"),
        ({"backend": "tensorrt"}, "was built for backend onnxruntime, and tensorrt was asked for: leave it out"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be in \\[1, .*, got 0"),
        ({"trust_remote_code": True}, "trust_remote_code must be False: Precast reads a checkpoint's data and never"),
        ({"tokenizer_mode": "slow"}, "tokenizer_mode must be 'auto', got 'slow'"),
        ({"tokenizer_revision": "x"}, r"tokenizer_revision must be revision \(None\) or None, got 'x'"),
        ({"num_threads": 0}, "num_threads must be between 1 and "),
        ({"kv_cache_bytes": -5}, "kv_cache_bytes must be between 1 and "),
        ({"max_seq_len": 0}, "max_seq_len must be between 1 and "),
        ({"max_batch_size": 8, "max_num_tokens": 4}, "max_num_tokens 4 is less than max_batch_size 8"),
    ],
)
def test_an_argument_that_cannot_work(
    tiny_engine: Callable[..., Path], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LLM(tiny_engine("gqa"), **arguments)


def test_an_option_of_the_wrong_type(tiny_engine: Callable[..., Path]) -> None:
    with pytest.raises(TypeError, match="num_threads must be an integer or None, got '4'"):
        LLM(tiny_engine("gqa"), num_threads="4")


def test_a_limit_above_the_engines_is_lowered_with_one_warning(
    tiny_engine: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    with LLM(tiny_engine("gqa"), max_seq_len=1000) as llm:
        assert llm.info["max_seq_len"] == 256
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["max_seq_len is 256 and not 1000: the engine was built for no more"]


def test_a_limit_below_the_engines_holds(tiny_engine: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    with LLM(tiny_engine("gqa"), max_model_len=10) as llm:
        output = llm.generate([5] * 4, SamplingParams(max_tokens=None, ignore_eos=True), use_tqdm=False)
        assert output.outputs[0].length == 6
        with pytest.raises(ValueError, match="the prompt has 10 tokens, and max_seq_len 10 must hold it"):
            llm.generate([5] * 10, use_tqdm=False)
    assert caplog.records == []


# ----------------------------------------------------------------------------------------------- damaged engines


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path / "nothing")):
        LLM(tmp_path / "nothing")


def test_a_directory_that_is_neither_engine_nor_checkpoint(copy: Path) -> None:
    """Such as an engine whose copying was interrupted."""
    (copy / "engine.json").unlink()
    message = f"^{copy} is neither an engine (it has no engine.json) nor a checkpoint (it has no config.json)$"
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        LLM(copy)


def test_an_empty_name() -> None:
    with pytest.raises(ValueError, match="model must be a path or a hub id, got an empty string"):
        LLM("")


@pytest.mark.parametrize("name", ["rank0/weights.bin", "rank0/model.onnx", "tokenizer/tokenizer.json"])
def test_a_missing_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(CorruptEngineError, match=f"^{copy / name}: missing, engine.json lists it with "):
        LLM(copy)


@pytest.mark.parametrize("name", ["rank0/weights.bin", "rank0/model.onnx", "tokenizer/tokenizer.json"])
def test_a_truncated_file(copy: Path, name: str) -> None:
    size = (copy / name).stat().st_size
    with (copy / name).open("r+b") as file:
        file.truncate(size - 1)
    with pytest.raises(CorruptEngineError, match=f"^{copy / name}: is {size - 1} bytes, engine.json says {size}"):
        LLM(copy)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(("offset", "what"), [(20, "header"), (100, "index")])
def test_an_altered_header_or_index_is_noticed_by_its_checksum(copy: Path, offset: int, what: str) -> None:
    weights = copy / "rank0" / "weights.bin"
    flip(weights, offset)
    with pytest.raises(EngineLoadError, match=f"{weights}: the {what} is damaged") as caught:
        LLM(copy)
    assert caught.value.code == ErrorCode.CORRUPT_ENGINE


def test_altered_weights_are_noticed_when_asked_to_verify(copy: Path) -> None:
    flip(copy / "rank0" / "weights.bin", -1 + (copy / "rank0" / "weights.bin").stat().st_size)
    LLM(copy).shutdown()  # loading does not read them
    with pytest.raises(CorruptEngineError, match=r"1 of \d+ files are damaged: rank0/weights.bin \(SHA-256 is "):
        LLM(copy, verify=True)


def test_verify_passes_a_sound_engine(tiny_engine: Callable[..., Path]) -> None:
    LLM(tiny_engine("gqa"), verify=True).shutdown()


def test_a_newer_format(copy: Path) -> None:
    change_manifest(copy, format=2, precast_version="9.0.0")
    with pytest.raises(EngineError, match=r"engine format 2 of precast 9\.0\.0 is newer than format 1"):
        LLM(copy)


def test_an_unknown_op_is_named(copy: Path) -> None:
    requires = json.loads((copy / "engine.json").read_text())["requires"]
    change_manifest(copy, requires=[*requires, "ai.precast.Telepathy/3"])
    with pytest.raises(EngineLoadError, match=r"requires ai\.precast\.Telepathy/3, which this precast ") as caught:
        LLM(copy)
    assert caught.value.code == ErrorCode.UNSUPPORTED_ENGINE


def test_a_manifest_that_is_no_json(copy: Path) -> None:
    (copy / "engine.json").write_text("{")
    with pytest.raises(CorruptEngineError, match=f"{copy / 'engine.json'}:1:2: "):
        LLM(copy)


def test_another_tokenizer_that_is_not_there(tiny_engine: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} has no tokenizer.json"):
        LLM(tiny_engine("gqa"), tokenizer=tmp_path)


def test_an_onnxruntime_that_is_not_there(
    tiny_engine: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRECAST_ONNXRUNTIME", str(tmp_path / "libonnxruntime.so"))
    with pytest.raises(NativeError, match=f"{tmp_path}/libonnxruntime.so"):
        LLM(tiny_engine("gqa"))


def test_memory_that_cannot_hold_one_sequence(tiny_engine: Callable[..., Path]) -> None:
    with pytest.raises(NativeError, match="kv_cache_bytes"):
        LLM(tiny_engine("gqa"), kv_cache_bytes=1)


def test_saving_over_something_else_is_refused(llm: LLM, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(EngineError, match=f"^{tmp_path}: exists and is not an engine"):
        llm.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
