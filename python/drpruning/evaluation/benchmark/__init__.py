"""The domain benchmark: choose the continuation of a first half. Built from a corpus's held-out documents.

After the multiple-choice benchmark of DRPruning (Deng et al. 2024): the right choice is the true second half of a
passage, the wrong choices continue a similar or corrupted first half.
"""
