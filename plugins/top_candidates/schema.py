"""TopCandidates, version 1: of each row of logits the largest and their ids, in descending order.

    candidate_ids[r,k]    = the id of the k-th largest of logits[r]; of equal ones the smaller id comes first
    candidate_logits[r,k] = logits[r, candidate_ids[r,k]]

R = rows of logits, V = vocabulary, K = candidates of a row.

Input
    logits            float32 [R, V]
Outputs
    candidate_ids     int32 [R, K]
    candidate_logits  float32 [R, K]
Attributes
    vocab_size        V, at least 1
    num_candidates    K, from 1 to 64 and to V

Zeros of either sign are equal, and candidate_logits has the bits of the logits, of -0.0 too. Infinities are logits like
others, the largest and the smallest: a row of only -infinity has the candidates 0, 1, ..., K-1. Of a row with a NaN
candidate_ids are any ids from 0 to V-1, and candidate_logits theirs. A row's results are a function of that row alone,
and exact. The op has kernels for devices (V is at most 2^22) and none for the CPU, where the sampler sees all logits.
"""

from dataclasses import dataclass

from precast.plugins import domain

DOMAIN = domain.DOMAIN
NAME = "TopCandidates"
VERSION = 1
MAX_CANDIDATES = 64


@dataclass(frozen=True)
class TopCandidatesAttributes:
    """The op's attributes, as above."""

    vocab_size: int
    num_candidates: int
