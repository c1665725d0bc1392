"""llama.cpp for tests, through whichever of its Python packages is installed: llama-cpp-python or xllamacpp."""

from pathlib import Path

import numpy as np
import pytest


def log_probabilities(path: Path, prompt: list[int], length: int, vocabulary: int) -> tuple[list[int], np.ndarray]:
    """Return the tokens that llama.cpp generates greedily after ``prompt``, and log probabilities [length, vocabulary].

    The key/value cache is in float32, so that differences are those of the file. A context that ends earlier gives
    fewer tokens.
    """
    try:
        import llama_cpp
    except ImportError:
        return _of_server(path, prompt, length, vocabulary)
    f32 = 0  # GGML_TYPE_F32
    model = llama_cpp.Llama(
        str(path),
        n_ctx=len(prompt) + length,
        n_threads=1,
        verbose=False,
        logits_all=True,
        flash_attn=False,
        type_k=f32,
        type_v=f32,
    )
    model.eval(prompt)
    tokens, rows = [], []
    while len(tokens) < length and model.n_tokens < model.n_ctx():
        scores = np.array(model.scores[model.n_tokens - 1], dtype=np.float64)
        rows.append(scores - np.logaddexp.reduce(scores))
        tokens.append(int(scores.argmax()))
        model.eval(tokens[-1:])
    return tokens, np.array(rows)


def _of_server(path: Path, prompt: list[int], length: int, vocabulary: int) -> tuple[list[int], np.ndarray]:
    llama = pytest.importorskip("xllamacpp", reason="neither llama-cpp-python nor xllamacpp is installed")
    settings = llama.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx = len(prompt) + length
    settings.n_parallel = 1
    settings.warmup = False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.cache_type_k = settings.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = llama.Server(settings)
    request = {"prompt": prompt, "n_predict": length, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
    answer = server.handle_completions({**request, "logprobs": vocabulary})["choices"][0]["logprobs"]["content"]
    rows = np.full((len(answer), vocabulary), np.nan)
    for row, token in zip(rows, answer, strict=True):
        for entry in token["top_logprobs"]:
            row[entry["id"]] = entry["logprob"]
    return [token["id"] for token in answer], rows
