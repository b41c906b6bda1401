"""Which rows go to which rank of an expert-parallel group: once a rank, however many of its experts are chosen."""
