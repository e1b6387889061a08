"""Builds an engine from the example checkpoint, then runs it in a second process that knows nothing of the build.

./quickstart --prompt "A class definition" --max-tokens 64
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from precast import LLM

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKPOINT = REPOSITORY / "examples" / "checkpoints" / "pydoc-llama"
ENGINE = REPOSITORY / "build" / "quickstart" / "engine"


def build(checkpoint: Path, engine: Path) -> None:
    start = time.perf_counter()
    with LLM(checkpoint) as llm:
        llm.save(engine)
    print(f"build: {checkpoint.name} built and saved to {engine} in {time.perf_counter() - start:.2f} s", flush=True)


def run(engine: Path, prompt: str, max_tokens: int) -> int:
    program = Path(__file__).with_name("run_engine.py")
    return subprocess.run([sys.executable, program, engine, prompt, str(max_tokens)], check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description="Build an engine, then run it in a second process.")
    parser.add_argument("--prompt", default="A class definition", help="default: %(default)s")
    parser.add_argument("--max-tokens", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="default: the example of this repository")
    parser.add_argument("--engine", type=Path, default=ENGINE, help="default: build/quickstart/engine")
    args = parser.parse_args()
    build(args.checkpoint, args.engine)
    return run(args.engine, args.prompt, args.max_tokens)


if __name__ == "__main__":
    sys.exit(main())
