"""Tokenization: tokenizers, chunking of long documents, and tokenized blocks on disk."""
