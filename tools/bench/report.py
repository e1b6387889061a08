"""From what workers measured to figures, ratios and a table. Arithmetic only; nothing is run here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workloads import Workload

# The figure that a workload is about, and how it reads. Of tokens_per_s more is better, of seconds less.
HEADLINES = {
    "W1": ("decode_tokens_per_s", "tokens/s out, decoding"),
    "W2": ("prompt_tokens_per_s", "tokens/s in"),
    "W3": ("output_tokens_per_s", "tokens/s out"),
    "W4": ("output_tokens_per_s", "tokens/s out"),
    "W5": ("first_token_s", "s to first token"),
}


@dataclass(frozen=True)
class Figure:
    median: float
    least: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> Figure:
        return Figure(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        digits = 1 if self.median >= 10 else 2
        spread = "" if self.least == self.most else f" ({self.least:.{digits}f} - {self.most:.{digits}f})"
        return f"{self.median:.{digits}f}{spread}"


def figures(workload: Workload, started_ns: int, result: Mapping[str, Any]) -> dict[str, float]:
    """The figures of one run.

    Args:
        started_ns: when the worker's process was started; W5 counts from there.
        result: what the worker wrote.

    Returns:
        total_s, from submission to the last token of all; ttft_median_s and ttft_most_s, over the requests; the
        headline of the workload; load_s; pss_gb and its parts, and peak_rss_gb.
    """
    submitted_ns, runs = result["submitted_ns"], result["requests"]
    first_ns = [run["first_token_ns"] for run in runs]
    last_ns = max(run["last_token_ns"] for run in runs)
    total_s = (last_ns - submitted_ns) / 1e9
    ttfts_s = [(one - submitted_ns) / 1e9 for one in first_ns]
    values = {
        "total_s": total_s,
        "ttft_median_s": statistics.median(ttfts_s),
        "ttft_most_s": max(ttfts_s),
        "load_s": result["load_s"],
    }
    if workload.name == "W1":
        values["decode_tokens_per_s"] = (workload.num_output_tokens - 1) * 1e9 / (last_ns - first_ns[0])
    elif workload.name == "W2":
        values["prompt_tokens_per_s"] = workload.num_prompt_tokens / ttfts_s[0]
    elif workload.name == "W5":
        values["first_token_s"] = (first_ns[0] - started_ns) / 1e9
    else:
        values["output_tokens_per_s"] = workload.num_output_tokens / total_s
    return values | {f"{name}_gb": size / 1e9 for name, size in result["memory"].items()}


def speed_ratio(workload_name: str, ours: float, theirs: float) -> float:
    """How many times as fast as `theirs` `ours` is: above 1 is faster, in seconds as in tokens per second."""
    less_is_better = not HEADLINES[workload_name][0].endswith("_per_s")
    return theirs / ours if less_is_better else ours / theirs


def agreement(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """Share of requests whose first token is the same: a check that two engines computed the same model."""
    pairs = list(zip(ours["requests"], theirs["requests"], strict=True))
    same: list[bool] = [first["token_ids"][0] == other["token_ids"][0] for first, other in pairs]
    return sum(same) / len(same)


def summarize(workload_name: str, baseline: str, rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Per variant: every figure over the rounds, and how many times as fast as it `baseline` was, round by round.

    Args:
        rounds: per round, figures by variant; each includes "bandwidth_gb_s".
    """
    headline = HEADLINES[workload_name][0]
    summary: dict[str, Any] = {}
    for variant in rounds[0]:
        entry = {name: Figure.of([one[variant][name] for one in rounds]) for name in rounds[0][variant]}
        if variant != baseline and baseline in rounds[0]:
            ratios = [speed_ratio(workload_name, one[baseline][headline], one[variant][headline]) for one in rounds]
            entry["baseline_is_faster_by"] = Figure.of(ratios)
        summary[variant] = entry
    return summary


def table(workload_name: str, baseline: str, summary: Mapping[str, Mapping[str, Figure]]) -> str:
    """A Markdown table of a workload."""
    headline, unit = HEADLINES[workload_name]
    head = [workload_name, unit, f"{baseline} is faster by", "TTFT s, median", "TTFT s, last"]
    head += ["PSS GB", "peak RSS GB", "bandwidth GB/s"]
    rows = [head, ["---"] * len(head)]
    for variant, entry in summary.items():
        ratio = f"{entry['baseline_is_faster_by']}" if "baseline_is_faster_by" in entry else ""
        columns = ("ttft_median_s", "ttft_most_s", "pss_gb", "peak_rss_gb", "bandwidth_gb_s")
        medians = [f"{entry[name].median:.2f}" for name in columns]
        rows.append([variant, str(entry[headline]), ratio, *medians])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
