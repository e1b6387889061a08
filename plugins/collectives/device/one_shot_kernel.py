"""AllReduce over peer memory in one kernel: every rank reads what all ranks have, and adds it up.

N = ranks, G = programs, the same in every call. A rank has a mailbox, which its peers see (mailbox.py draws it):
flags of every program and rank, and two buffers. In its call number e (from 1), program g of a rank

    1. copies its part of x into buffer e % 2 of its own mailbox
    2. writes e into flag [e % 2][g][rank] of every rank's mailbox: it has arrived
    3. waits until all flags [e % 2][g] of its own mailbox are e: all have
    4. reads its part of all ranks' buffers, adds up in fp32 in the order of ranks, and rounds once

so all ranks have the same bits, which depend on nothing but the ranks' values at that place.

Why one meeting is enough: a rank that writes a buffer again, in call e + 2, has ended its call e + 1. For that every
peer had to arrive in its own call e + 1, with all its programs, and so had ended its call e, because calls follow each
other on a rank: nobody reads the buffer any more. The same holds for flags: one that is e is seen before it is e + 2.
Calls must follow each other, and nothing else: which part of x a program has may change from call to call.

The call's number is counted in device memory, by each program for itself, so a captured graph may be replayed.

All programs of a call must run at the same time, for each waits for its like on other ranks: G is small.

A peer that does not come for `timeout_ms` is written into `missing`, and the output is not to be used; from then on
this rank waits for nobody. It is the host that looks there.

Floor: (N - 1) * size bytes over the link of one GPU, and one write and its way to a peer: 3 to 5 us in other libraries.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton  # noqa: TID253  imported only where kernels are compiled or interpreted
import triton.language as tl  # noqa: TID253


@triton.jit
def one_shot_all_reduce(
    x,  # element type [num_elements]
    mailboxes,  # int64 [N], the address of each rank's mailbox as this rank sees it
    calls,  # int32 [G], how many calls each program has ended
    missing,  # int32 [G], 1 + the first rank that did not come, 0 while all have; written
    y,  # element type [num_elements], written; not x
    num_vectors,  # num_elements / 8, which is 16 bytes: so the compiler sees that accesses are whole vectors
    rank,
    timeout_ms,
    N: tl.constexpr,
    G: tl.constexpr,
    BUFFER: tl.constexpr,  # bytes of a buffer
    FLAGS: tl.constexpr,  # bytes of the flags, before the buffers
    BLOCK: tl.constexpr,
):
    N_PADDED: tl.constexpr = triton.next_power_of_2(N)
    element = x.dtype
    num_elements = num_vectors * 8
    g = tl.program_id(0)
    call = tl.load(calls + g) + 1
    turn = call & 1  # right when the number has wrapped around, too
    buffer = FLAGS + turn * BUFFER
    lane = tl.arange(0, BLOCK)

    # 1.
    own = tl.multiple_of((tl.load(mailboxes + rank) + buffer).to(element), 16)
    for start in tl.range(g * BLOCK, num_elements, G * BLOCK):
        i = start + lane
        tl.store(own + i, tl.load(x + i, mask=i < num_elements), mask=i < num_elements)
    tl.debug_barrier()  # the writes of all threads come before the flags, which other threads write

    # 2.
    peer = tl.arange(0, N_PADDED)
    row = (turn * G + g) * N
    flags = (tl.load(mailboxes + peer, mask=peer < N, other=0)).to(tl.pointer_type(tl.int32))
    tl.atomic_store(
        flags + row + rank, tl.zeros([N_PADDED], tl.int32) + call, mask=peer < N, sem="release", scope="sys"
    )

    # 3.
    arrivals = tl.load(mailboxes + rank).to(tl.pointer_type(tl.int32)) + row
    patience_ns = tl.where(tl.load(missing + g) == 0, timeout_ms, 0).to(tl.int64) * 1000000
    last = tl.minimum(peer, N - 1)
    is_here = tl.atomic_poll(arrivals + last, call, sem="acquire", scope="sys", timeout_ns=patience_ns)
    absent = tl.min(tl.where(is_here, N, last), axis=0)
    if absent < N:
        tl.store(missing + g, absent + 1)
    tl.debug_barrier()  # what the threads that waited know, all know

    # 4.
    for start in tl.range(g * BLOCK, num_elements, G * BLOCK):
        i = start + lane
        total = tl.zeros([BLOCK], tl.float32)
        for r in tl.static_range(N):
            part = tl.multiple_of((tl.load(mailboxes + r) + buffer).to(element), 16)
            value = tl.load(part + i, mask=i < num_elements, other=0.0).to(tl.float32)
            total = value if r == 0 else total + value
        tl.store(y + i, total.to(element.element_ty), mask=i < num_elements)
    tl.store(calls + g, call)
