"""Masked models: learn what to keep, cut it out. Needs torch and transformers."""
