"""Fixtures of the pruning tests: tiny models of every architecture, and tokens."""

from tests.pruning.conftest import any_model, tokens

__all__ = ["any_model", "tokens"]
