"""examples/streaming: what it prints piece by piece is what generate gives."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from precast import LLM, SamplingParams

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "streaming" / "stream.py"
PROMPTS = ["The import statement", "A list", "print("]


def test_the_pieces_are_the_text(tiny_engine: Callable[..., Path]) -> None:
    engine = tiny_engine("gqa")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(PROGRAM), str(engine), *PROMPTS],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    params = SamplingParams(temperature=0, max_tokens=48, stop=["\n", "."], include_stop_str_in_output=True)
    with LLM(engine) as llm:
        expected = [output.outputs[0] for output in llm.generate(PROMPTS, params, use_tqdm=False)]
    for number, (prompt, completion) in enumerate(zip(PROMPTS, expected, strict=True)):
        pieces = re.findall(rf"^{number}: (.*)$", done.stdout, re.MULTILINE)
        assert "".join(map(ast.literal_eval, pieces)) == completion.text
        ended_by = completion.finish_reason if completion.stop_reason is None else repr(completion.stop_reason)
        assert f"\n{prompt}{completion.text} ({completion.length} tokens, ended by {ended_by})\n" in done.stdout
