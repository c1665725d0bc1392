"""Pipeline on one machine: tasks, worker processes, tokenization of all domains, writing of shards."""
