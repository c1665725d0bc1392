"""Small language models from large ones, good in every domain.

Names are loaded when they are first used, so ``import drpruning`` needs numpy alone and is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drpruning import torch as torch
    from drpruning._native import __version__ as __version__
    from drpruning.corpus import Corpus as Corpus
    from drpruning.sampler import Batch as Batch
    from drpruning.sampler import DomainSampler as DomainSampler

# Public name -> module that defines it.
_HOME = {
    "Batch": "drpruning.sampler",
    "Corpus": "drpruning.corpus",
    "DomainSampler": "drpruning.sampler",
    "__version__": "drpruning._native",
}

__all__ = ["Batch", "Corpus", "DomainSampler", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "torch":  # the one public module that needs torch
        return import_module("drpruning.torch")
    if name not in _HOME:
        raise AttributeError(f"module 'drpruning' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "torch"})
