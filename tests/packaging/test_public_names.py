"""What `precast` exports, and how: names are promises, so a new or a missing one shows up here."""

import pytest

import precast


def test_public_names() -> None:
    assert sorted(precast.__all__) == [
        "BuildCacheConfig",
        "CapacitySchedulerPolicy",
        "CompletionOutput",
        "KvCacheConfig",
        "KvCacheRetentionConfig",
        "LLM",
        "Logprob",
        "PreprocessedInputs",
        "QueueFullError",
        "RequestFuture",
        "RequestOutput",
        "SamplingParams",
        "SchedulerConfig",
        "TokenRangeRetentionConfig",
        "__version__",
    ]


@pytest.mark.parametrize("name", precast.__all__)
def test_each_public_name_resolves_and_is_listed(name: str) -> None:
    assert getattr(precast, name) is getattr(precast, name)
    assert name in dir(precast)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'precast' has no attribute 'Llm'"):
        precast.Llm  # noqa: B018
