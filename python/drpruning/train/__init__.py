"""The training loop and its parts. Needs torch."""
