"""Corpora without a download: text of the installed packages, and synthetic text."""
