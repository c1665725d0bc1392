"""Text to tokenised corpora. Needs tokenizers."""
