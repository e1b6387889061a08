"""Several prompts at once in one event loop: each line says which of them has gone on, and by what.

python stream.py ENGINE PROMPT [PROMPT ...]
"""

import asyncio
import sys

from precast import LLM, RequestOutput, SamplingParams


async def follow(llm: LLM, number: int, prompt: str, params: SamplingParams) -> RequestOutput:
    async for output in llm.generate_async(prompt, params, streaming=True):
        (completion,) = output.outputs
        print(f"{number}: {completion.text_diff!r}")
    return output


async def main(engine: str, prompts: list[str]) -> None:
    params = SamplingParams(temperature=0, max_tokens=48, stop=["\n", "."], include_stop_str_in_output=True)
    with LLM(engine) as llm:
        outputs = await asyncio.gather(*(follow(llm, i, prompt, params) for i, prompt in enumerate(prompts)))
    for output in outputs:
        (completion,) = output.outputs
        ended_by = completion.finish_reason if completion.stop_reason is None else f"{completion.stop_reason!r}"
        print(f"{output.prompt}{completion.text} ({completion.length} tokens, ended by {ended_by})")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
