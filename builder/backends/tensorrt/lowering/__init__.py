"""What TensorRT's parser needs beside what all devices do (builder/backends/lowering)."""
