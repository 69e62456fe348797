"""Step A and what it leaves behind: runs, first weights, losses, training, averaging."""
