"""A chat endpoint with OpenAI's protocol: one request at a time, with retries for temporary errors."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from drpruning.errors import ConfigError, EndpointError
from drpruning.evaluation.benchmark.generator import TokenUsage

CHARACTERS_PER_TOKEN = 3.5  # approximate, for English text and code; used where an endpoint does not count tokens
TEMPORARY = {408, 409, 425, 429, 500, 502, 503, 504}  # HTTP states that a retry may resolve
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before the first retry and at most; the wait doubles each time, with jitter between half and all of it."""


@dataclass(frozen=True)
class Answer:
    """The text of an answer, and the tokens counted."""

    text: str
    spent: TokenUsage


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible chat endpoint.

    Args:
        url: Base URL, for instance ``http://localhost:8000/v1``; ``/chat/completions`` is added.
        model: Name of the model.
        api_key_env: Environment variable with the API key; if it is unset, no key is sent.
        timeout: Seconds to wait for an answer.
        tries: Maximum number of requests.
        sleep: Waits between requests; replaced in tests.
    """

    url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    tries: int = 5
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).netloc:
            raise ConfigError(
                f"the endpoint {self.url!r} is not a http(s) address", "For example http://localhost:8000/v1"
            )

    def complete(self, prompt: str, *, temperature: float, seed: int) -> Answer:
        """Send one user message and return the answer.

        Raises:
            ConfigError: The endpoint refuses the request, e.g. for a wrong key or model; a retry would not help.
            EndpointError: No usable answer in ``tries`` requests.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": temperature,
            "seed": seed % 2**31,
        }
        draw = random.Random(seed)  # noqa: S311 - spreads the waits of parallel requests
        wait, last = FIRST_WAIT, ""
        for attempt in range(self.tries):
            if attempt:
                self.sleep(wait * draw.uniform(0.5, 1.0))
                wait = min(2 * wait, LONGEST_WAIT)
            try:
                text, prompt_tokens, completion_tokens = _parse(self._post(body))
            except HTTPError as error:
                last = f"HTTP {error.code} {error.reason}"
                if error.code not in TEMPORARY:
                    raise ConfigError(
                        f"the endpoint {self.url} refuses the request: {last}",
                        f"Check the address, --endpoint-model and the key in ${self.api_key_env}.",
                    ) from error
                wait = max(wait, min(_seconds(error.headers.get("Retry-After")), LONGEST_WAIT))
                error.close()
            except (OSError, HTTPException) as error:  # no connection, a broken one, a time-out
                last = str(getattr(error, "reason", error)) or type(error).__name__
            except ValueError as error:
                last = str(error)
            else:
                prompt_tokens = prompt_tokens or round(len(prompt) / CHARACTERS_PER_TOKEN)
                completion_tokens = completion_tokens or round(len(text) / CHARACTERS_PER_TOKEN)
                return Answer(text, TokenUsage(attempt + 1, prompt_tokens, completion_tokens))
        raise EndpointError(
            f"the endpoint {self.url} gave no answer in {self.tries} tries; the last: {last}",
            "The items so far are kept: the same command resumes.",
        )

    def _post(self, body: dict[str, Any]) -> bytes:
        key = os.environ.get(self.api_key_env)
        request = Request(  # noqa: S310 - the scheme was checked
            self.url.rstrip("/") + "/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        if key:
            request.add_unredirected_header("Authorization", f"Bearer {key}")  # not sent to other hosts on a redirect
        with urlopen(request, timeout=self.timeout) as response:  # noqa: S310 - as above
            content: bytes = response.read()
        return content


def _parse(content: bytes) -> tuple[str, int, int]:
    """Return the message, and the tokens of prompt and answer; 0 if the endpoint does not count them."""
    try:
        body = json.loads(content)
        text = body["choices"][0]["message"]["content"]
        usage = body.get("usage") or {}
        counts = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not a chat completion: {content[:80]!r}") from error
    if not isinstance(text, str):
        raise ValueError("a chat completion without text")
    return text, counts[0], counts[1]


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0  # a date: the doubled wait is used
