"""GreedyTokens, version 1: of each row of logits its likeliest token, and the log of the sum of their exponentials.

    tokens[r]   = the smallest i among those with the largest logits[r,i]; V if the row has a NaN
    log_sums[r] = log(sum_i exp(logits[r,i]))

R = rows of logits, V = vocabulary.

Input
    logits    float32 [R, V]
Outputs
    tokens    int32 [R]
    log_sums  float32 [R]
Attributes
    none

The largest logit is taken out of a sum first, m + log(sum_i exp(logits[r,i] - m)), so that exp cannot overflow. Zeros
of either sign are equal. Infinities and NaN:

    row                              tokens[r]                  log_sums[r]
    some -infinity                   as ever                    as ever: they add 0
    only -infinity                   0                          -infinity
    some +infinity                   the first of these         NaN, for the sum has inf - inf
    some NaN                         V: there is no token       NaN

log_sums is within 1e-5 of the exact value, or within 2 units in the last place, whichever is more. A row's results are
a function of that row alone. The op has kernels for devices (V is at most 2^22) and none for the CPU, where the sampler
sees all logits.
"""

from dataclasses import dataclass

from precast.plugins import domain

DOMAIN = domain.DOMAIN
NAME = "GreedyTokens"
VERSION = 1


@dataclass(frozen=True)
class GreedyTokensAttributes:
    """The op has no attributes."""
