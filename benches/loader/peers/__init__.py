"""One file per contender, each with the same two names.

``prepare(data, seq_len)`` writes the contender's own format once. ``Loader(data, seq_len, workers, state=None)`` is an
iterator of batches, int64 ``[32, seq_len]`` in separate memory, made as the contender's documentation recommends
for tokenized data; ``state()`` is what it needs to resume.
"""
