"""Runs TensorRT plans: the session of one rank on one GPU, in a process of its own.

worker.py        the process: what precast starts for each rank
session_table.py a session as precast.h's table of functions
session.py       the session: enqueues steps, collects results
step.py          a step, and what it gave
shapes.py        the shapes that steps are padded to
buffers.py       where inputs and outputs of a step lie, on the host and on the device
network.py       a plan: its execution contexts, bindings and graphs
toolkit.py       TensorRT and the CUDA driver; refuses what an engine needs and is not here
open_engine.py   opens a rank: plan, weights, KV pools, memory for steps
runtime_cache.py what TensorRT has compiled on a GPU, kept in the engine
warm.py          runs all shapes once, for `precast warm`
device.py        the GPU: memory, a stream, events, graphs

Only the process of a rank imports TensorRT and CUDA, never the user's.
"""
