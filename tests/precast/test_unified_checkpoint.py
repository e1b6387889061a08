"""LLM on a unified checkpoint of TensorRT-LLM: what its users have at hand."""

from collections.abc import Callable
from pathlib import Path

import pytest

from precast import LLM, SamplingParams
from tests.checkpoints.tensorrt_llm.unified import write_unified

GREEDY = SamplingParams(temperature=0.0, max_tokens=8)


@pytest.mark.parametrize("tp", [1, 2])
def test_it_generates_what_the_original_does(tp: int, tiny_llama: Callable[[str], Path], tmp_path: Path) -> None:
    source = tiny_llama("gqa")
    unified = write_unified(source, tmp_path / "unified", tp=tp)
    with LLM(source) as original, LLM(unified, tokenizer=source) as llm:
        expected = original.generate("The import", GREEDY)
        output = llm.generate("The import", GREEDY)
        assert output.outputs[0].text == expected.outputs[0].text
        assert output.outputs[0].token_ids == expected.outputs[0].token_ids
        llm.save(tmp_path / "engine")
    with LLM(tmp_path / "engine") as saved:
        assert saved.generate("The import", GREEDY).outputs[0].text == expected.outputs[0].text
