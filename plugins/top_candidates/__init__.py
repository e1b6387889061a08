"""TopCandidates: of each row of logits the largest and their ids, in descending order."""
