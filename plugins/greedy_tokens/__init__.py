"""GreedyTokens: of each row of logits its likeliest token, and the log of the sum of their exponentials."""
