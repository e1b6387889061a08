"""Everything that generate takes for a prompt, and what it refuses."""

from typing import Any

import numpy as np
import pytest

from precast.inputs import Prompt, is_single, to_prompts

TEXT = Prompt(text="Hi")
IDS = Prompt(token_ids=(3, 1, 2))


@pytest.mark.parametrize(
    ("inputs", "prompt"),
    [
        ("Hi", TEXT),
        ({"prompt": "Hi"}, TEXT),
        ([3, 1, 2], IDS),
        ((3, 1, 2), IDS),
        (np.array([3, 1, 2]), IDS),
        ([np.int32(3), 1, np.array(2)], IDS),
        ({"prompt_token_ids": [3, 1, 2]}, IDS),
        ({"prompt_token_ids": np.array([3, 1, 2])}, IDS),
    ],
)
def test_one_prompt(inputs: Any, prompt: Prompt) -> None:
    assert is_single(inputs)
    assert to_prompts(inputs) == [prompt]


@pytest.mark.parametrize(
    ("inputs", "prompts"),
    [
        ([], []),
        (["Hi"], [TEXT]),
        ([[3, 1, 2]], [IDS]),
        (("Hi", [3, 1, 2], {"prompt": "Hi"}, {"prompt_token_ids": (3, 1, 2)}), [TEXT, IDS, TEXT, IDS]),
        (np.array([[3, 1, 2], [3, 1, 2]]), [IDS, IDS]),
        ([np.array([3, 1, 2]), np.array([7])], [IDS, Prompt(token_ids=(7,))]),
    ],
)
def test_several_prompts(inputs: Any, prompts: list[Prompt]) -> None:
    assert not is_single(inputs)
    assert to_prompts(inputs) == prompts


def test_token_ids_become_plain_integers() -> None:
    (prompt,) = to_prompts(np.array([3, 1], np.int64))  # type: ignore[arg-type]
    assert prompt.token_ids is not None
    assert [type(token_id) for token_id in prompt.token_ids] == [int, int]


KINDS = "inputs must be a str, token ids, a dict or a list of these, got "
KEYS = 'must be {"prompt": str} or {"prompt_token_ids": list of int}, got a dict with '


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (None, TypeError, KINDS + "NoneType"),
        (7, TypeError, KINDS + "int"),
        (b"Hi", TypeError, KINDS + "bytes"),
        ({"Hi"}, TypeError, KINDS + "set"),
        (iter(["Hi"]), TypeError, KINDS + "list_iterator"),
        ([True, False], TypeError, "prompt 0 must be a str, token ids or a dict, got True"),
        ([1.5], TypeError, "prompt 0 must be a str, token ids or a dict, got 1.5"),
        ([1, "Hi"], TypeError, "prompt 0 must be a str, token ids or a dict, got 1"),
        (["Hi", b"Hi"], TypeError, "prompt 1 must be a str, token ids or a dict, got b'Hi'"),
        (["Hi", [1, None]], TypeError, "prompt 1 must be a str, token ids or a dict, got [1, None]"),
        ([np.array([1.5])], TypeError, "prompt 0 must be a str, token ids or a dict, got array([1.5])"),
        ("", ValueError, "the prompt is empty"),
        (["Hi", ""], ValueError, "prompt 1 is empty"),
        ([[]], ValueError, "prompt 0 is empty"),
        ({"prompt_token_ids": []}, ValueError, "the prompt is empty"),
        ({}, ValueError, f"the prompt {KEYS}[]"),
        ({"promt": "Hi"}, ValueError, f"the prompt {KEYS}['promt']"),
        ({"prompt": "Hi", "prompt_token_ids": [1]}, ValueError, f"the prompt {KEYS}['prompt', 'prompt_token_ids']"),
        ({"prompt": [1]}, ValueError, f"the prompt {KEYS}['prompt']"),
        (["Hi", {"prompt_token_ids": "Hi"}], ValueError, f"prompt 1 {KEYS}['prompt_token_ids']"),
        ({5: "Hi"}, ValueError, f"the prompt {KEYS}['5']"),
    ],
)
def test_what_is_no_prompt(inputs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        to_prompts(inputs)
    assert str(caught.value) == message


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(TypeError) as caught:
        to_prompts([[None] * 1000])  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200
