"""AllReduce: the sum of what the ranks of a stage have."""
