"""Tokenized corpora: token files, ``corpus.json``, MosaicML's index, document boundaries. Needs numpy."""

from drpruning.corpus.corpus import HELD_OUT_KEY, Corpus

__all__ = ["HELD_OUT_KEY", "Corpus"]
