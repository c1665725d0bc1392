"""Hugging Face models: the files of a folder or of a name on the hub, models with their weights, and tokenizers.

:mod:`drpruning.hf.files` loads neither torch nor transformers.
"""
