"""Building the ranks of an engine: what is done for one, here or in processes beside each other."""
