"""Contenders, one file each, with the same interface.

``prepare(data, seq_len)`` writes the files in the contender's format, once. ``Loader(data, seq_len, workers,
state=None)`` is an iterator of batches, int64 ``[32, seq_len]`` in new memory, built as the contender's documentation
recommends for tokenized data; ``state()`` returns the state to resume from.
"""
