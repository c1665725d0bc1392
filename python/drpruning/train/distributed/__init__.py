"""The processes of a run: their agreement, their heartbeats, and models sharded over them."""
