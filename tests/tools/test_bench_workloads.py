"""tools/bench: the workloads are exactly those that docs/performance.md speaks of, the same every time."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools.bench_modules import load_bench_module

workloads = load_bench_module("workloads")

VOCAB_SIZE = 32000
# name: requests, shortest and longest prompt, fewest and most tokens out, tokens in, tokens out
SHAPES = {
    "W1": (1, 128, 128, 64, 64, 128, 64),
    "W2": (1, 1024, 1024, 1, 1, 1024, 1),
    "W3": (32, 32, 256, 16, 128, 4229, 2360),
    "W4": (16, 544, 544, 16, 16, 8704, 256),
    "W5": (1, 8, 8, 1, 1, 8, 1),
}


class TestShapes:
    @pytest.mark.parametrize("name", SHAPES)
    def test_lengths_and_totals(self, name: str) -> None:
        workload = workloads.make_workload(name, VOCAB_SIZE)
        count, least_in, most_in, least_out, most_out, total_in, total_out = SHAPES[name]
        prompts = [len(request.prompt) for request in workload.requests]
        outputs = [request.num_output_tokens for request in workload.requests]
        assert len(workload.requests) == count
        assert least_in <= min(prompts) <= max(prompts) <= most_in
        assert least_out <= min(outputs) <= max(outputs) <= most_out
        assert (workload.num_prompt_tokens, workload.num_output_tokens) == (total_in, total_out)
        assert (sum(prompts), sum(outputs)) == (total_in, total_out)

    def test_there_are_these_and_no_others(self) -> None:
        assert tuple(SHAPES) == workloads.NAMES

    def test_w3_lengths_are_spread_over_their_ranges(self) -> None:
        requests = workloads.make_workload("W3", VOCAB_SIZE).requests
        assert len({len(request.prompt) for request in requests}) > 16
        assert len({request.num_output_tokens for request in requests}) > 16

    def test_w4_shares_its_prefix_and_nothing_else(self) -> None:
        workload = workloads.make_workload("W4", VOCAB_SIZE)
        assert workload.num_shared_tokens == 512
        assert len({request.prompt[:512] for request in workload.requests}) == 1
        assert len({request.prompt[512] for request in workload.requests}) == 16

    @pytest.mark.parametrize("name", [name for name in SHAPES if name != "W4"])
    def test_others_share_nothing(self, name: str) -> None:
        workload = workloads.make_workload(name, VOCAB_SIZE)
        assert workload.num_shared_tokens == 0
        assert len({request.prompt[0] for request in workload.requests}) == len(workload.requests)


class TestTokens:
    @pytest.mark.parametrize("name", SHAPES)
    def test_are_ordinary_ones_and_the_same_every_time(self, name: str) -> None:
        workload = workloads.make_workload(name, VOCAB_SIZE)
        ids = [token for request in workload.requests for token in request.prompt]
        assert min(ids) >= 3
        assert max(ids) < VOCAB_SIZE
        assert workload == workloads.make_workload(name, VOCAB_SIZE)

    def test_do_not_change_with_the_python_version(self) -> None:
        assert workloads.make_workload("W5", VOCAB_SIZE).requests[0].prompt == (
            20300,
            29885,
            7324,
            22278,
            25522,
            12242,
            21699,
            4584,
        )

    @pytest.mark.parametrize("name", SHAPES)
    def test_of_the_warm_up_leave_no_prefix_to_reuse(self, name: str) -> None:
        workload = workloads.make_workload(name, VOCAB_SIZE)
        warm_up = workloads.make_warm_up(workload, VOCAB_SIZE)
        assert len(warm_up.requests) <= len(workload.requests)
        assert not {one.prompt[0] for one in warm_up.requests} & {one.prompt[0] for one in workload.requests}

    @pytest.mark.parametrize("name", SHAPES)
    def test_survive_json(self, name: str) -> None:
        workload = workloads.make_workload(name, VOCAB_SIZE)
        assert workloads.Workload.from_json(json.loads(json.dumps(workload.to_json()))) == workload


class TestScale:
    @given(name=st.sampled_from(list(SHAPES)), scale=st.integers(2, 2000))
    def test_divides_everything_down_to_one(self, name: str, scale: int) -> None:
        whole = workloads.make_workload(name, VOCAB_SIZE)
        scaled = workloads.make_workload(name, VOCAB_SIZE, scale)
        assert len(scaled.requests) == max(1, len(whole.requests) // scale)
        assert scaled.num_shared_tokens == whole.num_shared_tokens // scale
        shared = {request.prompt[: scaled.num_shared_tokens] for request in scaled.requests}
        assert len(shared) == 1
        for before, after in zip(whole.requests, scaled.requests, strict=False):
            own = len(before.prompt) - whole.num_shared_tokens
            assert len(after.prompt) == scaled.num_shared_tokens + max(1, own // scale)
            assert after.num_output_tokens == max(1, before.num_output_tokens // scale)


class TestSpread:
    @given(
        seed=st.integers(0, 1000),
        count=st.integers(1, 40),
        least=st.integers(0, 9),
        width=st.integers(0, 99),
        data=st.data(),
    )
    def test_keeps_bounds_and_sum(self, seed: int, count: int, least: int, width: int, data: st.DataObject) -> None:
        total = data.draw(st.integers(count * least, count * (least + width)))
        values = workloads.spread(random.Random(seed), count, least, least + width, total)
        assert len(values) == count
        assert sum(values) == total
        assert least <= min(values) <= max(values) <= least + width

    @pytest.mark.parametrize("total", [5, 21])
    def test_refuses_an_impossible_sum(self, total: int) -> None:
        with pytest.raises(ValueError, match=rf"2 integers in \[3, 10\] cannot have the sum {total}"):
            workloads.spread(random.Random(0), 2, 3, 10, total)


class TestRefusals:
    def test_unknown_name(self) -> None:
        with pytest.raises(ValueError, match="no workload 'W9'; there are W1, W2, W3, W4, W5"):
            workloads.make_workload("W9", VOCAB_SIZE)

    def test_vocabulary_without_ordinary_tokens(self) -> None:
        with pytest.raises(ValueError, match="vocab_size must be more than 3, got 3"):
            workloads.make_workload("W1", 3)
