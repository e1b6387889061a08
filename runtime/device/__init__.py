"""Runs engines on GPUs: the session of one rank on one GPU, in a process of its own.

worker.py        the process: what precast starts for each rank
session_table.py a session as precast.h's table of functions
session.py       the session: enqueues steps, collects results
step.py          a step, and what it gave
shapes.py        the shapes that steps are padded to
buffers.py       where inputs and outputs of a step lie, on the host and on the device
network.py       what a session asks of a network, and graphs of its steps
toolkit.py       what runs networks, and the CUDA driver; refuses what an engine needs and is not here
open_engine.py   opens a rank: network, weights, memory for steps
kv_pools.py      KV pools: how many blocks, and their memory
layer_outputs.py what layers give, for `precast verify --backend tensorrt`
warm.py          runs all shapes once, for `precast warm`; the largest step
device.py        the GPU: memory, a stream, events, graphs

What runs a network is runtime/tensorrt or runtime/onnxruntime. Only the process of a rank imports them and CUDA, never
the user's.
"""
