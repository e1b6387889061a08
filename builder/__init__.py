"""Checkpoint -> engine: networks made of blocks, graph passes, quantisation, backends."""
