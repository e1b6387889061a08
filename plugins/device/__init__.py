"""What the device kernels of all ops share: specs, ahead-of-time compilation, the bytes that travel, launches.

kernel_spec.py       what to compile
compile_triton.py    compiles it without a GPU, the only file that needs Triton
compiled_kernel.py   the result, and the targets
serialize.py         a set of results as bytes and back
launch.py            what to launch, and the workspace
driver.py            calls of the CUDA driver
"""
