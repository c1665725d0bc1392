"""The mixture strategies, one rule each."""
