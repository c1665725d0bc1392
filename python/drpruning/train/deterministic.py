"""``training.deterministic``: kernels that give the same bits each time, where torch guarantees it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils import deterministic as torch_deterministic

from drpruning.errors import ConfigError

WORKSPACE, WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
"""The buffers with which cuBLAS gives the same bits on several streams (cuBLAS documentation, "Results
reproducibility"); it reads the variable at a process's first matrix product on a GPU. The first is the faster."""


def check_deterministic(on: bool) -> None:
    """Check that cuBLAS has a workspace with deterministic results.

    Raises:
        ConfigError: The environment sets another workspace.
    """
    present = os.environ.get(WORKSPACE, WORKSPACES[0])
    if on and present not in WORKSPACES:
        raise ConfigError(
            f"training.deterministic needs {WORKSPACE} to be one of {', '.join(WORKSPACES)}; it is {present!r}",
            f"Unset {WORKSPACE}, or use --set training.deterministic=false.",
        )


@contextmanager
def deterministic(on: bool, *, compiled: bool = False) -> Iterator[None]:
    """Make operations without a deterministic kernel raise within the context, if ``on``; then restore the settings.

    Scaled dot product attention excludes cuDNN's kernel and runs the backward pass of the others without atomic
    additions. torch's default to fill memory before use is off: no code here reads uninitialised memory.

    Args:
        on: Whether to change the settings.
        compiled: Also disable the compiler's choice of kernels by measurement.
    """
    if not on:
        yield
        return
    check_deterministic(on)
    with ExitStack() as stack:
        if WORKSPACE not in os.environ:
            os.environ[WORKSPACE] = WORKSPACES[0]
            stack.callback(os.environ.pop, WORKSPACE, None)
        enabled, warn_only = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        stack.callback(torch.use_deterministic_algorithms, enabled, warn_only=warn_only)
        torch.use_deterministic_algorithms(True)
        for module, name, value in (
            (torch.backends.cudnn, "deterministic", True),
            (torch.backends.cudnn, "benchmark", False),
            (torch_deterministic, "fill_uninitialized_memory", False),
        ):
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        if compiled:
            from torch._inductor import config  # noqa: PLC0415 - takes a second to load

            inductor: Any = config
            if hasattr(inductor, "deterministic"):  # torch 2.9
                stack.enter_context(inductor.patch(deterministic=True))
        yield
