"""What ONNX Runtime's CUDA provider needs beside what all devices do (builder/backends/lowering)."""
