"""Writes ancestors.json: numbers that the code of the public ancestors computes, run unchanged.

    python tests/golden/make_ancestors.py DRPRUNING_CHECKOUT SHEARING_CHECKOUT

The folders are checkouts of hexuandeng/DRPruning at 3015bf1, the last commit that fits the law in the training process
(its law, solver and ratio rule are those of ac442bb, where they cannot run), and of princeton-nlp/LLM-Shearing at
b87218b. Packages of theirs that are not needed are replaced by empty modules: torch alone is enough.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import ancestor_inputs as inputs
import torch
from torch import Tensor, nn

torch.set_num_threads(1)
torch.cuda.current_device = lambda: "cpu"  # the only device that their callbacks use

HF_TO_COMPOSER = {
    "model.embed_tokens": "transformer.wte",
    "model.norm": "transformer.ln_f",
    "lm_head": "transformer.output",
    "model.layers": "transformer.blocks",
    "self_attn.q_proj": "attn.wq",
    "self_attn.k_proj": "attn.wk",
    "self_attn.v_proj": "attn.wv",
    "self_attn.o_proj": "attn.out_proj",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
}
PACKAGES = """
    composer.core.time composer.loggers composer.metrics.nlp composer.models.base composer.utils einops flask
    matplotlib.pyplot omegaconf requests torchmetrics transformers.pytorch_utils
"""


class EmptyModule(ModuleType):
    """A package in which every name is an empty class."""

    __path__: list[str] = []  # noqa: RUF012 - as of a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *args, **kwargs: None})


class Config(dict[str, Any]):
    """Entries as attributes, as omegaconf has them."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


def replace_packages() -> None:
    for package in PACKAGES.split():
        for end in range(1, package.count(".") + 2):
            name = ".".join(package.split(".")[:end])
            sys.modules.setdefault(name, EmptyModule(name))
    replaced: dict[str, Any] = sys.modules
    replaced["composer.core.time"].Time = SimpleNamespace(
        from_timestring=lambda text: SimpleNamespace(value=int(text.removesuffix("ba")))
    )
    replaced["composer.models.base"].ComposerModel = nn.Module
    replaced["einops"].rearrange = split_heads
    replaced["transformers.pytorch_utils"].prune_linear_layer = keep_entries
    replaced["transformers.pytorch_utils"].find_pruneable_heads_and_indices = kept_head_entries


def split_heads(tensor: Tensor, pattern: str, *, h: int) -> Tensor:
    assert pattern == "b s (h d) -> b h s d"
    return tensor.unflatten(-1, (h, -1)).transpose(1, 2)


def keep_entries(layer: nn.Linear, index: Tensor, dim: int = 0) -> nn.Linear:
    weight = layer.weight.detach().index_select(dim, index)
    kept = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None)
    kept.weight = nn.Parameter(weight)
    if layer.bias is not None:
        kept.bias = nn.Parameter(layer.bias.detach() if dim == 1 else layer.bias.detach()[index])
    return kept


def kept_head_entries(heads: list[int], n_heads: int, head_size: int, pruned: set[int]) -> tuple[set[int], Tensor]:
    assert not pruned
    kept = [head * head_size + k for head in range(n_heads) if head not in heads for k in range(head_size)]
    return set(heads), torch.tensor(kept, dtype=torch.long)


def load(checkout: Path, package: str, module: str) -> Any:
    """Imports a module of a checkout, whatever package of that name is installed."""
    if package not in sys.modules:
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = [str(checkout / package)]
    return importlib.import_module(f"{package}.{module}")


def array(values: Tensor) -> dict[str, Any]:
    """Float32 with the 9 digits that determine it."""
    assert values.dtype == torch.float32
    flat = [float(f"{v:.9g}") for v in values.detach().flatten().tolist()]
    return {"dtype": "float32", "shape": list(values.shape), "values": flat}


def kept(mask: Tensor) -> list[Any]:
    """Indices of the units that stay, a list for each row."""
    rows = mask.detach().reshape(-1, mask.shape[-1])
    return [row.nonzero().flatten().tolist() for row in rows]


# ---- masks


def model_config(*, grouped: bool = False, **changes: Any) -> Config:
    shape = {"vocab_size": inputs.VOCABULARY, "max_seq_len": 16, "name": "llama2"}
    source = {"d_model": inputs.HIDDEN, "n_heads": inputs.HEADS, "n_layers": inputs.BLOCKS}
    target = {"d_model": inputs.KEPT["hidden"], "n_heads": inputs.KEPT["head"], "n_layers": inputs.KEPT["layer"]}
    l0_module: dict[str, Any] = {
        "pruning_modules": ["layer", "head", "intermediate", "hidden"],
        "start_sparsity": 0.0,
        "lagrangian_warmup_steps": f"{inputs.WARMUP_STEPS}ba",
        "target_model": Config(target, intermediate_size=inputs.KEPT["intermediate"], vocab_size=inputs.VOCABULARY),
    }
    if grouped:
        source |= {"n_kv_heads": inputs.KV_HEADS}
        kv_heads = inputs.KEPT_KV_HEADS
        target |= {"n_kv_heads": kv_heads, "n_heads": kv_heads * inputs.HEADS // inputs.KV_HEADS}
        l0_module["target_model"] = Config(l0_module["target_model"] | target)
    return Config(
        shape | source,
        intermediate_size=inputs.INTERMEDIATE,
        init_device="cpu",
        attn_impl="normal",
        l0_module=Config(l0_module | changes),
    )


def place(l0_module: Any) -> Any:
    """Puts gates and multipliers where the inputs have them."""
    for kind, mask in l0_module.masks.items():
        located = torch.tensor(inputs.log_alpha(kind)).reshape(inputs.SHAPES[kind])
        grouped = located.shape != mask.z_loga.shape
        mask.z_loga.data = located[:, :: inputs.HEADS // inputs.KV_HEADS].contiguous() if grouped else located
        for order, value in enumerate(inputs.MULTIPLIERS[kind], 1):
            l0_module.lambdas[f"lambda_{order}_{kind}"].data.fill_(value)
    return l0_module


def hard_concrete(l0: Any) -> dict[str, Any]:
    values = torch.linspace(-4.6051, 4.6051, 24)
    draws = torch.tensor([1e-6, 1e-4, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999, 0.999999])
    mask = l0.Mask("m", [24], 1, [24], 0.5, 12, "cpu")
    mask.z_loga.data = values.clone()
    samples = []
    for draw in draws:
        mask.get_eps = lambda size, draw=draw: draw.expand(24)
        samples.append(mask.sample_z())
    score, sparsity = mask.calculate_expected_score_sparsity()
    mask.z_loga.data = torch.tensor([-40.0, -4.7, 0.0, 4.7, 40.0])
    mask.constrain_parameters()
    return {
        "log_alpha": array(values),
        "noise": array(draws),
        "samples": array(torch.stack(samples)),
        "expected_score": array(score),
        "sparsity": array(sparsity),
        "clamped": array(mask.z_loga),
    }


def constraint(l0: Any) -> dict[str, Any]:
    module = place(l0.L0Module(model_config(), "cpu"))
    found: dict[str, Any] = {"steps": [], "rises": []}
    for step in (0, 160, 640, 3200):
        module.zero_grad()
        loss, reported = module(calculate_lagrangian=True, pruned_steps=step)
        loss.backward()
        row = {"step": step, "loss": array(loss)}
        row |= {"reported": {name: float(value) for name, value in reported.items()}}
        row |= {"log_alpha": {kind: array(mask.z_loga.grad) for kind, mask in module.masks.items()}}
        row |= {
            "multipliers": {name: array(value.grad) for name, value in module.lambdas.items() if value.grad is not None}
        }
        found["steps"].append(row)
    for warmup, start in ((640, 0.0), (100, 0.0), (0, 0.0), (640, 0.1)):
        module = l0.L0Module(model_config(lagrangian_warmup_steps=f"{warmup}ba", start_sparsity=start), "cpu")
        at = [0, 1, 50, 99, 100, 101, 320, 639, 640, 641, 3200]
        values = [module.get_target_sparsity(step, 0.375) for step in at]
        found["rises"].append({"warmup": warmup, "start": start, "final": 0.375, "at": at, "values": values})
    return found


def sizes(l0: Any, l0_grouped: Any) -> dict[str, Any]:
    module = place(l0_grouped.L0Module(model_config(grouped=True), "cpu"))
    scores, _ = module.calculate_expected_score_sparsity()
    expected: Any = array(module.get_expected_num_params(scores))
    found = {"grouped": {"prunable": module.prunable_model_size, "expected": expected}}
    for name, kinds in {
        "all": ["layer", "head", "intermediate", "hidden"],
        "no_hidden": ["layer", "head", "intermediate"],
        "no_layer": ["head", "intermediate", "hidden"],
    }.items():
        module = place(l0.L0Module(model_config(pruning_modules=kinds), "cpu"))
        scores, _ = module.calculate_expected_score_sparsity()
        try:
            expected = array(module.get_expected_num_params(scores))
        except TypeError as error:
            expected = f"TypeError: {error}"
        found[name] = {"prunable": module.prunable_model_size, "expected": expected}
    return found


def deterministic(l0: Any) -> dict[str, Any]:
    found = {}
    for name, to_target in (("target", True), ("expected", False)):
        module = place(l0.L0Module(model_config(eval_target_model=to_target), "cpu")).eval()
        soft = {kind: mask.deterministic_z().reshape(inputs.SHAPES[kind]) for kind, mask in module.masks.items()}
        found[name] = {kind: {"kept": kept(value), "values": array(value)} for kind, value in soft.items()}
    return found


# ---- logits


def tiny(model_class: Any, *, masked: bool, binary: bool | None = None, grouped: bool = False) -> Any:
    config = model_config(grouped=grouped)
    if not masked:
        del config["l0_module"]
    model = model_class(config)
    state = {}
    for name, shape in inputs.weight_shapes(grouped=grouped).items():
        theirs = name
        for hf, composer in HF_TO_COMPOSER.items():
            theirs = theirs.replace(hf, composer)
        state[theirs] = torch.tensor(inputs.weights(name, grouped=grouped)).reshape(shape)
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert all("rotary" in key or "l0_module" in key for key in left.missing_keys)
    if masked:
        place(model.l0_module)
    if binary is not None:
        for kind, mask in model.l0_module.masks.items():
            drawn = torch.tensor(inputs.noise(kind, binary=binary and kind == "hidden")).reshape(inputs.SHAPES[kind])
            mask.get_eps = lambda size, drawn=drawn: drawn
    return model.eval() if binary is None else model.train()


@torch.no_grad()
def logits(model_class: Any, *, grouped: bool = False) -> dict[str, Any]:
    tokens = torch.tensor(inputs.TOKENS)
    soft = tiny(model_class, masked=True, grouped=grouped)(tokens)
    zeros_and_ones = {name: (value != 0).float() for name, value in soft["zs"].items()}
    pruned = tiny(model_class, masked=True, grouped=grouped)
    pruned.prune_params()
    pruned.l0_module = None
    plain = tiny(model_class, masked=False, grouped=grouped)
    found = {
        "dense": array(plain(tokens)["logits"]),
        "zeros_and_ones": array(plain(tokens, **zeros_and_ones)["logits"]),
        "soft": array(soft["logits"]),
        "pruned": array(pruned(tokens)["logits"]),
        "parameters": {name: list(value.shape) for name, value in pruned.named_parameters()},
    }
    if not grouped:
        for name, binary in (("sampled", False), ("sampled_hidden_binary", True)):
            found[name] = array(tiny(model_class, masked=True, binary=binary)(tokens)["logits"])
    return found


# ---- data mixture


def loading(sheared: Any, drpruning: Any) -> list[dict[str, Any]]:
    cases = [
        (inputs.RECIPE, [0.35, 0.12, 0.30, 0.25, 0.42, 0.18, 0.33]),
        (inputs.RECIPE, [2.1, 0.0, 1.9, 0.0, 2.4, 0.7, 0.1]),
        ([0.5, 0.5], [-1.0, 0.0]),
        (inputs.RECIPE, [-0.35, 0.12, -0.30, 0.25, 0.0, -0.18, 0.01]),
        ([0.2, 0.3, 0.5], [-0.5, -0.25, -0.125]),
    ]
    found = []
    for proportion, excess in cases:
        names = [str(d) for d in range(len(proportion))]
        reference = [2.0] * len(proportion)
        losses = [2.0 + value for value in excess]
        row: dict[str, Any] = {"proportion": proportion, "reference_loss": reference, "losses": losses, "weights": {}}
        for kind, name in (("sheared", "doremi"), ("bandit", "bandit"), ("constant", "constant")):
            a = sheared.DynamicLoadingCallback(reference, proportion, names, name).update_proportion(proportion, losses)
            b = drpruning.DynamicLoadingCallback(reference, proportion, names, kind).update_proportion(
                proportion, losses
            )
            assert a == b  # the two repositories agree to the bit
            row["weights"][kind] = a
        found.append(row)
    return found


def evaluated(losses: list[float]) -> dict[str, Any]:
    """Return the metrics of an evaluation, domains named by their number."""
    return {
        f"{d}_LanguageCrossEntropy": SimpleNamespace(compute=lambda loss=loss: torch.tensor(loss))
        for d, loss in enumerate(losses)
    }


def run_trajectory(
    dro: Any, case: inputs.Trajectory, *, clamp: bool = True
) -> tuple[list[list[float]], list[list[float]]]:
    names = [str(d) for d in range(len(case.proportion))]
    callback = dro.DRPruningCallback(
        list(case.reference_loss),
        list(case.proportion),
        names,
        rho=case.rho,
        clamp_q_to_min=int(clamp),
        dynamic_proportion=True,
    )
    weights: list[list[float]] = []
    ratios = []
    dataset = SimpleNamespace(update_proportion=weights.append)
    state = SimpleNamespace(
        train_dataloader=SimpleNamespace(dataset=dataset), max_duration=SimpleNamespace(value=inputs.STEPS)
    )
    for k, losses in enumerate(case.losses, 1):
        callback.update_steps = k * inputs.EVERY
        state.eval_metrics = {"eval": evaluated(losses)}
        callback.eval_end(state, None)
        ratios.append(callback.p_train.tolist())
    return weights, ratios


def digits(values: list[float]) -> list[float]:
    return [float(f"{value:.7g}") for value in values]


def trajectories(dro: Any) -> dict[str, Any]:
    stored, ends = [], []
    for index in range(inputs.TRAJECTORIES):
        weights, ratios = run_trajectory(dro, inputs.trajectory(index))
        rows = [[digits(row) for row in pair] for pair in zip(weights, ratios, strict=True)]
        if index < inputs.STORED:
            stored.append(rows)
        ends.append({"weights": rows[-1][0], "ratio": rows[-1][1], "sha256": checksum(rows)})
    steady = []
    for clamp in (True, False):
        weights, ratios = run_trajectory(dro, inputs.steady(), clamp=clamp)
        steady.append({"clamp": clamp, "weights": digits(weights[-1]), "ratio": digits(ratios[-1])})
    return {"stored": stored, "ends": ends, "steady": steady}


def checksum(rows: list[list[list[float]]]) -> str:
    """Hash all numbers to four decimals, to compare two runs of the script; no test asserts it."""
    text = json.dumps([[[round(value, 4) for value in part] for part in row] for row in rows])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def references(dro: Any) -> list[dict[str, Any]]:
    """Record how reference losses follow predictions: the predictions are given, the rule is theirs."""
    found = []
    for given in ([2.0, 1.0, 3.0], [0.0, 0.0, 0.0]):
        losses, predictions = inputs.reference_case()
        callback = dro.DRPruningCallback(
            list(given), [0.5, 0.3, 0.2], ["0", "1", "2"], dynamic_baseline=True, dynamic_proportion=True
        )
        callback.scaling_law.draw_plt = lambda *args: None
        weights: list[list[float]] = []
        state = SimpleNamespace(
            train_dataloader=SimpleNamespace(dataset=SimpleNamespace(update_proportion=weights.append)),
            max_duration=SimpleNamespace(value=inputs.STEPS),
        )
        rows = []
        for k, (measured, answers) in enumerate(zip(losses, predictions, strict=True), 1):
            callback.update_steps = k * inputs.EVERY
            callback.used_domain_counts += 1000
            state.eval_metrics = {"eval": evaluated(measured)}
            left = iter(answers)
            # As the law answers: variables, the prediction, the objective
            callback.scaling_law.optimize = lambda *args, left=left: [0.0, 0.0, 0.0, next(left), 0.0]
            before = len(weights)
            callback.eval_end(state, None)
            rows.append({"reference_loss": digits(callback.reference_loss), "updated": len(weights) > before})
        found.append({"given": given, "rows": rows})
    return found


def laws(dro: Any) -> list[dict[str, Any]]:
    found = []
    for index in range(10):
        curve = inputs.curve(index)
        points = [curve.tokens] + ([curve.sparsity] if curve.sparsity else [])
        law = dro.ScalingLaw(for_prune=bool(curve.sparsity))
        final = torch.tensor(curve.final).unsqueeze(-1)
        *variables, predicted, objective = law.optimize(torch.tensor(points), torch.tensor(curve.losses), final)
        # What `optimize` fits last is the best of its three starts; its answer is the mean over the three
        best = {"variables": digits(law.variables), "predicted": float(f"{law.forward(final).item():.9g}")}
        mean = {"variables": digits(variables), "predicted": float(f"{predicted:.9g}")}
        found.append({"best": best, "mean": mean, "objective": float(f"{objective:.3g}")})
    return found


def main() -> None:
    drpruning, shearing = (Path(folder) for folder in sys.argv[1:])
    replace_packages()
    with contextlib.redirect_stdout(io.StringIO()):
        l0 = load(shearing, "llmshearing", "models.l0_module")
        llama = load(shearing, "llmshearing", "models.composer_llama")
        sheared = load(shearing, "llmshearing", "callbacks.dynamic_loading_callback")
        dro = load(drpruning, "drpruning", "callbacks.DRO_loading_callback")
        l0_grouped = load(drpruning, "drpruning", "models.l0_module3")
        qwen2 = load(drpruning, "drpruning", "models.composer_qwen2")
        copied = load(drpruning, "drpruning", "callbacks.dynamic_loading_callback")
        golden = {
            "torch": torch.__version__,
            "hard_concrete": hard_concrete(l0),
            "constraint": constraint(l0),
            "sizes": sizes(l0, l0_grouped),
            "deterministic": deterministic(l0),
            "logits": {"llama": logits(llama.LlamaModel), "qwen2": logits(qwen2.Qwen2Model, grouped=True)},
            "loading": loading(sheared, copied),
            "laws": laws(dro),
            "references": references(dro),
            "trajectories": trajectories(dro),
        }
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(part)}" for name, part in golden.items())
    Path(__file__).with_name("ancestors.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
