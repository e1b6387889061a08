"""tools/bench: the arithmetic between what workers measure and what docs/performance.md says."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tools.bench_modules import load_bench_module

workloads = load_bench_module("workloads")
report = load_bench_module("report")

SECOND = 1_000_000_000


def worker_result(*runs: tuple[float, float, list[int]], submitted_s: float = 10.0) -> dict[str, Any]:
    """What a worker writes. A run is (first token, last token, token ids); times are seconds of one clock."""
    return {
        "submitted_ns": int(submitted_s * SECOND),
        "load_s": 0.5,
        "requests": [
            {"first_token_ns": int(first_s * SECOND), "last_token_ns": int(last_s * SECOND), "token_ids": ids}
            for first_s, last_s, ids in runs
        ],
        "memory": {
            "pss": 3_000_000_000,
            "pss_private": 1_000_000_000,
            "pss_mapped": 2_000_000_000,
            "peak_rss": 4 * 10**9,
        },
    }


def workload(name: str, *lengths: tuple[int, int]) -> Any:
    return workloads.Workload(name, tuple(workloads.Request((7,) * prompt, output) for prompt, output in lengths))


class TestFigures:
    def test_many_requests_count_from_submission_to_the_last_token(self) -> None:
        result = worker_result((11, 13, [1] * 6), (12, 14, [2] * 2), (15, 20, [3] * 12))
        figures = report.figures(workload("W3", (5, 6), (5, 2), (5, 12)), 0, result)
        assert figures == {
            "total_s": 10,
            "output_tokens_per_s": 2,
            "ttft_median_s": 2,
            "ttft_most_s": 5,
            "load_s": 0.5,
            "pss_gb": 3,
            "pss_private_gb": 1,
            "pss_mapped_gb": 2,
            "peak_rss_gb": 4,
        }

    def test_w1_counts_decoding_only(self) -> None:
        figures = report.figures(workload("W1", (9, 5)), 0, worker_result((12, 14, [1] * 5)))
        assert figures["decode_tokens_per_s"] == 2
        assert figures["ttft_median_s"] == 2
        assert "output_tokens_per_s" not in figures

    def test_w2_counts_the_prompt(self) -> None:
        figures = report.figures(workload("W2", (100, 1)), 0, worker_result((14, 14, [1])))
        assert figures["prompt_tokens_per_s"] == 25

    def test_w5_counts_from_the_start_of_the_process(self) -> None:
        figures = report.figures(workload("W5", (8, 1)), 9 * SECOND, worker_result((12, 12, [1])))
        assert figures["first_token_s"] == 3

    @pytest.mark.parametrize("name", workloads.NAMES)
    def test_every_workload_has_its_headline(self, name: str) -> None:
        figures = report.figures(workload(name, (8, 2)), 0, worker_result((11, 12, [1, 2])))
        assert report.HEADLINES[name][0] in figures


class TestRatios:
    def test_more_tokens_and_fewer_seconds_are_faster(self) -> None:
        assert report.speed_ratio("W3", 30, 20) == 1.5
        assert report.speed_ratio("W5", 0.2, 0.5) == 2.5

    def test_are_taken_round_by_round(self) -> None:
        """A machine that is twice as fast in one round changes both figures and no ratio."""
        rounds = [
            {"a": {"output_tokens_per_s": a, "x": 1.0}, "b": {"output_tokens_per_s": b, "x": 2.0}}
            for a, b in [(30, 20), (60, 40), (45, 15)]
        ]
        summary = report.summarize("W3", "a", rounds)
        assert summary["a"] == {"output_tokens_per_s": report.Figure(45, 30, 60), "x": report.Figure(1, 1, 1)}
        assert summary["b"]["baseline_is_faster_by"] == report.Figure(1.5, 1.5, 3)
        assert summary["b"]["output_tokens_per_s"] == report.Figure(20, 15, 40)

    def test_agreement_is_the_share_of_equal_first_tokens(self) -> None:
        ours = worker_result((1, 1, [5, 1]), (1, 1, [6, 1]), (1, 1, [7, 1]), (1, 1, [8]))
        theirs = worker_result((1, 1, [5, 2]), (1, 1, [0, 1]), (1, 1, [7, 1]), (1, 1, [8]))
        assert report.agreement(ours, theirs) == 0.75

    def test_agreement_refuses_other_work(self) -> None:
        with pytest.raises(ValueError, match="zip"):
            report.agreement(worker_result((1, 1, [5])), worker_result((1, 1, [5]), (1, 1, [5])))


class TestText:
    @pytest.mark.parametrize(
        ("figure", "text"),
        [
            ((25.74, 16.66, 28.2), "25.7 (16.7 - 28.2)"),
            ((0.084, 0.079, 0.2), "0.08 (0.08 - 0.20)"),
            ((3, 3, 3), "3.00"),
        ],
    )
    def test_of_a_figure(self, figure: tuple[float, float, float], text: str) -> None:
        assert str(report.Figure(*figure)) == text

    def test_of_a_table(self) -> None:
        common = {"ttft_median_s": 1, "ttft_most_s": 2, "pss_gb": 3, "peak_rss_gb": 4, "bandwidth_gb_s": 40}
        rounds = [{"a": common | {"output_tokens_per_s": 50}, "b": common | {"output_tokens_per_s": 20}}]
        rows = report.table("W4", "a", report.summarize("W4", "a", rounds)).splitlines()
        assert rows[0].startswith("| W4 | tokens/s out | a is faster by | TTFT s, median | TTFT s, last | PSS GB |")
        assert rows[1:] == [
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            "| a | 50.0 |  | 1.00 | 2.00 | 3.00 | 4.00 | 40.00 |",
            "| b | 20.0 | 2.50 | 1.00 | 2.00 | 3.00 | 4.00 | 40.00 |",
        ]
