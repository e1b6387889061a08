"""Embedding: rows of a packed weight matrix, the one that a tied language-model head uses."""
