"""Tests of drpruning.pruning."""
