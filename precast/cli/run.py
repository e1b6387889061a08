"""precast run: continue a prompt, and print the text as it comes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from typing import TYPE_CHECKING, Any

from precast.cli.errors import UsageError, describe
from precast.cli.output import note, print_json

if TYPE_CHECKING:
    from precast.llm import LLM
    from precast.outputs import RequestOutput
    from precast.sampling_params import SamplingParams

_SAMPLING_ARGUMENTS = ("max_tokens", "temperature", "top_k", "top_p", "seed", "ignore_eos", "stop_token_ids")
_RUNTIME_ARGUMENTS = ("num_threads", "max_seq_len", "kv_cache_bytes", "enable_build_cache")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="ENGINE|MODEL", help="an engine directory; or a checkpoint, built first")
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="default: all of stdin; at a terminal, line by line"
    )
    sampling = parser.add_argument_group("sampling; the defaults are those of the model's generation_config.json")
    sampling.add_argument("--max-tokens", type=int, metavar="N", help="output tokens at most (else 32)")
    sampling.add_argument("--temperature", type=float, metavar="X", help="0: always the most likely token")
    sampling.add_argument("--top-k", type=int, metavar="K", help="draw from the K most likely tokens; 0: from all")
    sampling.add_argument("--top-p", type=float, metavar="P", help="draw from the most likely tokens that hold P")
    sampling.add_argument("--seed", type=int, metavar="S", help="the same seed gives the same text")
    sampling.add_argument("--ignore-eos", action="store_true", default=None, help="go on after the end of the text")
    sampling.add_argument(
        "--stop-token-id",
        type=int,
        action="append",
        dest="stop_token_ids",
        metavar="ID",
        help="a further id that ends the text; may be given several times",
    )
    loading = parser.add_argument_group("loading")
    loading.add_argument("--num-threads", type=int, metavar="N", help="default: the processors there are")
    loading.add_argument("--max-seq-len", type=int, metavar="N", help="prompt and output; default: the engine's own")
    loading.add_argument(
        "--cache",
        action=argparse.BooleanOptionalAction,
        dest="enable_build_cache",
        help="keep the engine of a checkpoint in the build cache for the next time (see precast cache)",
    )
    loading.add_argument("--kv-cache-bytes", type=int, metavar="N", help="default: half of the free memory at most")


def run(args: argparse.Namespace) -> int:
    from precast.llm import LLM

    changes = _given(args, _SAMPLING_ARGUMENTS)
    _check(changes)
    prompt = args.prompt if args.prompt is not None or _at_terminal() else _read_stdin()
    start = time.perf_counter()
    with LLM(args.model, **_given(args, _RUNTIME_ARGUMENTS)) as llm:
        load_s = time.perf_counter() - start
        params = dataclasses.replace(llm.get_default_sampling_params(), **changes)
        if prompt is None:
            note(f"Loaded in {load_s:.2f} s. Every line is a prompt of its own; Ctrl-C stops an answer, Ctrl-D ends.")
            _converse(llm, params, args.json, load_s)
        else:
            _answer(llm, prompt, params, args.json, load_s)
    return 0


def _given(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def _check(changes: dict[str, Any]) -> None:
    """Before anything is loaded."""
    from precast.sampling_params import SamplingParams

    try:
        SamplingParams(**changes)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _read_stdin() -> str:
    if sys.stdin is None:
        raise UsageError("there is no PROMPT, and stdin is closed")
    try:
        prompt = sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is not UTF-8: {error}") from error
    if not prompt:
        raise UsageError("there is no PROMPT, and stdin is empty")
    return prompt


def _converse(llm: LLM, params: SamplingParams, as_json: bool, load_s: float) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives `input` editing and history

    while True:
        try:
            prompt = input("> ")
        except EOFError:
            note("")
            return
        if not prompt:
            continue
        try:
            _answer(llm, prompt, params, as_json, load_s)
        except KeyboardInterrupt:
            note("\n(stopped)")
        except ValueError as error:  # such as a prompt that is too long; the next may be better
            note(f"precast: error: {describe(error)}")


def _answer(llm: LLM, prompt: str, params: SamplingParams, as_json: bool, load_s: float) -> None:
    output = None
    for output in llm.stream(prompt, params):
        if not as_json:
            sys.stdout.write(output.outputs[0].text_diff)
            sys.stdout.flush()
    assert output is not None  # the end of a request is an event too
    if as_json:
        print_json(_to_json(output, load_s))
    else:
        print(flush=True)
        note(_summary(output, load_s))


def _tokens_per_s(output: RequestOutput) -> float | None:
    """Without the first token, whose time is that of reading the prompt; None where there is no other."""
    decode_s = output.metrics.decode_s
    return (output.outputs[0].length - 1) / decode_s if decode_s else None


def _summary(output: RequestOutput, load_s: float) -> str:
    completion, first_token_s, speed = output.outputs[0], output.metrics.first_token_s, _tokens_per_s(output)
    return (
        f"loaded in {load_s:.2f} s; {len(output.prompt_token_ids)} tokens in"
        + (f", first token after {first_token_s:.3f} s" if first_token_s is not None else "")
        + f"; {completion.length} tokens out"
        + (f" at {speed:.1f} tokens/s" if speed is not None else "")
        + f", ended by {completion.finish_reason}"
    )


def _to_json(output: RequestOutput, load_s: float) -> dict[str, Any]:
    completion = output.outputs[0]
    return {
        "prompt": output.prompt,
        "prompt_token_ids": output.prompt_token_ids,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
        "seed": completion.seed,
        "load_s": load_s,
        "first_token_s": output.metrics.first_token_s,
        "tokens_per_s": _tokens_per_s(output),
    }
