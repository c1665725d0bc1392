"""Output: holdout, layout of shards, Megatron files, and the corpus folder."""
