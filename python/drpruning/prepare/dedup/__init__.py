"""Deduplication: exact duplicates by digest, near duplicates by MinHash."""
