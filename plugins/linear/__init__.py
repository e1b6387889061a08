"""Linear: y = x W^T + bias, with W packed in tiles of 16 output features."""
