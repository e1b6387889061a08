"""LLM and the command line on engines for TensorRT: what they promise of engines holds of these."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from precast import LLM, SamplingParams
from precast.cli import main
from precast.verifying import verify_engine
from tests.runtime.tensorrt.conftest import Continuation
from tests.runtime.tensorrt.workers import Workers, fake_workers
from tests.runtime.tensorrt.worlds import FakeEngine

TinyLlama = Callable[..., Path]


@pytest.fixture(scope="module", autouse=True)
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """All engines of this file have workers with fake devices, which nothing misuses."""
    with fake_workers(tmp_path_factory.mktemp("workers")) as found:
        yield found


@pytest.fixture(scope="module")
def llm(workers: Workers, fake_engine: FakeEngine) -> Iterator[LLM]:
    with LLM(fake_engine("float16"), max_batch_size=4, max_num_tokens=32) as opened:
        yield opened


def greedy(max_tokens: int = 8, **fields: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True, **fields)


def test_tokens_of_many_prompts(llm: LLM, continuations: list[Continuation]) -> None:
    outputs = llm.generate([list(each.prompt) for each in continuations], greedy())
    assert [list(output.outputs[0].token_ids) for output in outputs] == [each.tokens for each in continuations]


def test_text(llm: LLM) -> None:
    (output,) = llm.generate(["The import statement"], greedy())
    assert llm.tokenizer is not None
    assert output.outputs[0].text == llm.tokenizer.decode(output.outputs[0].token_ids)
    assert llm.info["backend"] == "tensorrt"


def test_several_outputs_of_a_prompt(llm: LLM) -> None:
    """Output i draws with seed + i: it is that of a request with that seed."""
    prompt = [[5, 9, 200]]

    def params(**fields: Any) -> SamplingParams:
        return SamplingParams(max_tokens=6, top_k=40, ignore_eos=True, **fields)

    (together,) = llm.generate(prompt, params(n=3, seed=7))
    single = [llm.generate(prompt, params(seed=7 + i))[0] for i in range(3)]
    got = [list(output.token_ids) for output in together.outputs]
    assert got == [list(output.outputs[0].token_ids) for output in single]
    assert len({tuple(each) for each in got}) == 3


@pytest.mark.parametrize("logprobs", [0, 5, 64, 65, -1])
def test_logprobs(logprobs: int, llm: LLM) -> None:
    """More than the device gives of a row are taken of the whole row: they are the same where both have them."""
    (output,) = llm.generate([[5, 9, 200]], greedy(4, logprobs=logprobs))
    (everything,) = llm.generate([[5, 9, 200]], greedy(4, logprobs=-1))
    assert list(output.outputs[0].token_ids) == list(everything.outputs[0].token_ids)
    got, whole = output.outputs[0].logprobs, everything.outputs[0].logprobs
    assert got is not None
    assert whole is not None
    for few, all_of_them in zip(got, whole, strict=True):
        assert len(all_of_them) == 320
        assert len(few) == {0: 1, -1: 320}.get(logprobs, logprobs)
        for token, logprob in few.items():
            assert logprob.logprob == pytest.approx(all_of_them[token].logprob, abs=0.02)


def test_save_and_load_again(llm: LLM, tmp_path: Path, continuations: list[Continuation]) -> None:
    llm.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "rank0" / "model.plan").is_file()
    with LLM(tmp_path / "saved", verify=True, backend="tensorrt", max_batch_size=2) as again:
        (output,) = again.generate([list(continuations[0].prompt)], greedy())
        assert list(output.outputs[0].token_ids) == continuations[0].tokens


def test_weights_beside_the_plan(fake_engine: FakeEngine, continuations: list[Continuation]) -> None:
    with LLM(fake_engine("float16", weights="separate"), max_batch_size=4) as llm:
        outputs = llm.generate([list(each.prompt) for each in continuations[:4]], greedy())
    assert [list(output.outputs[0].token_ids) for output in outputs] == [each.tokens for each in continuations[:4]]


def test_another_backend_than_it_was_built_for(fake_engine: FakeEngine) -> None:
    with pytest.raises(ValueError, match="was built for backend tensorrt, and onnxruntime was asked for"):
        LLM(fake_engine("float16"), backend="onnxruntime")


# --------------------------------------------------------------------------------------------------------- the command


def run_command(*arguments: str | Path) -> str:
    output = io.StringIO()
    with redirect_stdout(output):
        assert main([str(argument) for argument in arguments]) == 0
    return output.getvalue()


def test_run(fake_engine: FakeEngine, llm: LLM) -> None:
    flags = ("--temperature", "0", "--max-tokens", "5", "--ignore-eos", "--json")
    result = json.loads(run_command("run", fake_engine("float16"), "The import statement", *flags))
    (output,) = llm.generate(["The import statement"], greedy(5))
    assert output.outputs[0].text in json.dumps(result, ensure_ascii=False) or output.outputs[0].text in str(result)


def test_inspect(fake_engine: FakeEngine) -> None:
    text = run_command("inspect", fake_engine("float16"))
    assert "tensorrt_rtx" in text
    assert "compute capability from 8.0" in text


def test_verify_files(fake_engine: FakeEngine) -> None:
    assert "all as they were built" in run_command("verify", fake_engine("float16", weights="separate"))


def test_verify_logits(tiny_llama: TinyLlama, fake_engine: FakeEngine, tmp_path: Path) -> None:
    """Of every position, which Model computes: a session that gives a row for each token of a step."""
    with LLM(fake_engine("gqa")) as llm:
        llm.save(tmp_path / "engine")  # since verifying writes into it
        assert llm.info["dtype"] == "bfloat16"
    report = verify_engine(tmp_path / "engine", tiny_llama("gqa"), prompts=["The import", "def add(a: int"])
    assert report.passed
    assert [prompt.greedy_agreement for prompt in report.prompts] == [1, 1]
    assert (tmp_path / "engine" / "verification.json").is_file()


def test_the_users_process_imports_neither_tensorrt_nor_cuda(fake_engine: FakeEngine, tmp_path: Path) -> None:
    """A defect of one of these is the end of a process: it must not be the user's."""
    script = """
import sys
from precast import LLM, SamplingParams
with LLM(sys.argv[1]) as llm:
    output = llm.generate([[5, 9, 200]], SamplingParams(max_tokens=3, temperature=0))
    assert len(output[0].outputs[0].token_ids) == 3
roots = {name.split(".")[0] for name in sys.modules}
print(sorted(roots & {"tensorrt_rtx", "tensorrt", "cuda", "onnx", "torch", "tests"}))
print(sorted(name for name in sys.modules if name.startswith("precast.runtime.tensorrt")))
"""
    command = [sys.executable, "-c", script, str(fake_engine("float16"))]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.splitlines() == ["[]", "[]"]
