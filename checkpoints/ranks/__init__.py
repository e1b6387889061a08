"""Models spread over ranks: which rank holds which layers and which slice of each tensor, and checkpoints stored so."""
