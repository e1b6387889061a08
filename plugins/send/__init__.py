"""Send: rows to the next stage of a pipeline."""
