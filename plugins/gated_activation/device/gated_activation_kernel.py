"""GatedActivation: silu(gate) * up, in fp32, rounded once.

T = rows, I = features, J = features of a program.

A program does J columns of one row: output[t,i] = gate / (1 + exp(-gate)) * up. exp and the quotient are the GPU's, a
few units in the last place of fp32, and rounding to 16 bits hides nearly all of it.

Floor: 6 * T * I bytes: 4096 rows of 14336 features are 352 MB, 73 us at 4.8 TB/s. The few rows of a decode step cost a
launch.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton  # noqa: TID253  imported only where kernels are compiled or interpreted
import triton.language as tl  # noqa: TID253


@triton.jit
def gated_activation(
    gate_up,  # element type [T, 2 * I]
    output,  # element type [T, I], written
    I: tl.constexpr,  # noqa: E741  as in the schema
    J: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)  # T * 2 * I may pass 2^31
    i = tl.program_id(1) * J + tl.arange(0, J)
    gate_row = gate_up + t * (2 * I)
    gate_J = tl.load(gate_row + i, mask=i < I, other=0.0).to(tl.float32)
    up_J = tl.load(gate_row + I + i, mask=i < I, other=0.0).to(tl.float32)
    product_J = gate_J / (1.0 + tl.exp(-gate_J)) * up_J
    tl.store(output + t * I + i, product_J.to(output.dtype.element_ty), mask=i < I)
