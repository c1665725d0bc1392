"""One file for each contender, read by the same two names.

``prepare(data, seq_len)`` writes the contender's own format once. ``Loader(data, seq_len, workers, state=None)`` is an
iterator of batches, int64 ``[32, seq_len]`` in memory of their own, made as the contender's documentation recommends
for tokens that are ready; ``state()`` is what it needs to go on.
"""
