"""Corpora without a download: text of the installed packages, and synthetic text."""

VOCAB_SIZE = 1536
"""Ids of the demo corpus's tokenizer."""
