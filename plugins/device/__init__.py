"""What the ops on NVIDIA GPUs share: specs, ahead-of-time compilation, the bytes that travel, fields, launches.

kernel_spec.py       what to compile
compile_triton.py    compiles it without a GPU, the only file that needs Triton
compiled_kernel.py   the result, and the targets
serialize.py         a set of results as bytes and back
op_fields.py         what an op is specialised by, as attributes of a node
kernel_sets.py       kernels in nodes: which of them carries a set
op_call.py           what an op gets that is to run
launch.py            what to launch, and the workspace
launcher.py          launches it
run_launches.py      launches all of an op, with its workspace
driver.py            calls of the CUDA driver
"""
