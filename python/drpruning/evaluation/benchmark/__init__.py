"""The domain benchmark: which continuation belongs to a first half? Built from a corpus's held-out documents.

After the multiple-choice benchmark of DRPruning (Deng et al. 2024): the right choice is the true second half of a
passage, the wrong ones continue a first half that is not quite this one.
"""
