"""Which exports a new one supersedes."""
