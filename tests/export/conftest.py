"""The fixtures of the tests of pruning: tiny models of every architecture, and tokens."""

from tests.pruning.conftest import CONFIGS, GROUPED, any_model, build, tokens

__all__ = ["CONFIGS", "GROUPED", "any_model", "build", "tokens"]
