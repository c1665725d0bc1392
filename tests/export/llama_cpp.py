"""llama.cpp for tests, through whichever of its Python packages is installed: llama-cpp-python or xllamacpp."""

from pathlib import Path

import pytest


def greedy(path: Path, prompt: list[int], length: int, context: int) -> list[int]:
    """Return ``length`` tokens after ``prompt``, generated greedily by llama.cpp."""
    try:
        from llama_cpp import Llama
    except ImportError:
        return _greedy_of_server(path, prompt, length, context)
    model = Llama(str(path), n_ctx=context, n_threads=1, verbose=False)
    found = []
    for token in model.generate(prompt, temp=0.0):
        found.append(token)
        if len(found) == length:
            return found
    raise AssertionError("llama.cpp stopped early")


def _greedy_of_server(path: Path, prompt: list[int], length: int, context: int) -> list[int]:
    xllamacpp = pytest.importorskip("xllamacpp", reason="neither llama-cpp-python nor xllamacpp is installed")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx = context
    settings.n_parallel = 1
    settings.warmup = False
    settings.cpuparams.n_threads = 1
    server = xllamacpp.Server(settings)
    request = {"prompt": prompt, "n_predict": length, "temperature": 0.0, "ignore_eos": True, "logprobs": 1}
    answer = server.handle_completions({**request, "cache_prompt": False})
    return [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]
