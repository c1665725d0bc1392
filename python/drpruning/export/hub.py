"""Publish a finished model on the Hugging Face hub, or on the server that HF_ENDPOINT names, in one commit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from drpruning.errors import ConfigError, EndpointError


def check_repository(repository: str) -> None:
    """Check the name of a repository.

    Raises:
        ConfigError: It is not of the form ``OWNER/NAME``, in the characters of the hub.
    """
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository, re.ASCII) is None:
        raise ConfigError(f"the repository is {repository!r}; expected OWNER/NAME", "For example me/small-model.")


def publish(files: Mapping[str, Path], repository: str, *, private: bool = False) -> str:
    """Create a model repository if there is none, and commit files to it.

    Args:
        files: Files by their names in the repository.
        repository: ``OWNER/NAME``.
        private: Whether a repository that does not exist yet is created as a private one.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: ``repository`` is not a valid name.
        EndpointError: The hub cannot be reached, or refuses: no token, no permission, an invalid card.
    """
    import huggingface_hub as hub  # noqa: PLC0415 - takes a while to load

    check_repository(repository)
    api = hub.HfApi(library_name="drpruning")
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        commit = api.create_commit(
            repository,
            [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()],
            commit_message="Model trained with drpruning",
        )
    except Exception as error:  # of its HTTP client as well, which differs from version to version
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EndpointError(
            f"{api.endpoint} did not accept {repository}: {reason}",
            "Log in with `hf auth login`, check the name and your permission, then run the command again.",
        ) from error
    return str(commit.commit_url)
