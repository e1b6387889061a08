"""Blocks that emit a network from a ModelConfig alone: there is no code for any one model."""
