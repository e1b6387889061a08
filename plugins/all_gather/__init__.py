"""AllGather: the ranks' columns side by side."""
