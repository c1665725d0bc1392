"""Distillation: the divergence is the one of the formula, and a student that is its teacher has nothing to learn."""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from drpruning.config import DistillConfig, RunConfig
from drpruning.errors import ConfigError
from drpruning.flops import FlopCounts
from drpruning.planning.recipe import plan_recipe
from drpruning.pruning import MaskedModel, Target
from drpruning.records import ModelMeasured, RunEnded, StageEnded, StepTaken, read_records
from drpruning.train import distill
from drpruning.train.distill import Distiller
from drpruning.train.loop import Interrupted
from drpruning.train.run import train

from .test_run import stop_after, weights

Recipe = Callable[..., RunConfig]
STAGES = ("prune", "continue")


def model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 4}
    built = LlamaForCausalLM(LlamaConfig(vocab_size=50, max_position_embeddings=64, **shape))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return built


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(50, (3, 11), generator=torch.Generator().manual_seed(5))


def masked(seed: int = 0, **settings: object) -> MaskedModel:
    """Return a model with about half of its units pruned, in training mode."""
    wrapped = MaskedModel(model(seed), Target(layers=3, hidden=16, heads=2, intermediate=17), **settings)
    generator = torch.Generator().manual_seed(1)
    for gate in wrapped.gates.values():
        gate.data = torch.randn(gate.shape, generator=generator) - 1.5
    wrapped.train().sample_masks(generator)
    return wrapped


def test_the_divergence_is_the_formulas(tokens: torch.Tensor) -> None:
    student, teacher, temperature = model(1), model(2), 1.7
    distilled = Distiller(DistillConfig(weight=0.3, temperature=temperature), teacher).losses(student, tokens)
    p, q = (functional.log_softmax(each(tokens).logits[:, :-1] / temperature, -1) for each in (teacher, student))
    divergence = temperature**2 * functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    losses = functional.cross_entropy(student(tokens).logits[:, :-1].mT, tokens[:, 1:], reduction="none")
    torch.testing.assert_close(distilled.losses, losses)
    torch.testing.assert_close(distilled.objective, 0.7 * losses + 0.3 * divergence)


class ExcludedTokens(LlamaForCausalLM):
    """A model that never predicts the first tokens of its vocabulary: their logits are -inf."""

    excluded: int = 3

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found = super().forward(*args, **kwargs)
        found.logits[..., : self.excluded] = -math.inf
        return found


@pytest.mark.parametrize("student_excludes", [False, True])
@pytest.mark.parametrize("top_k", [None, 6, 49])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_tokens_that_the_teacher_excludes_contribute_nothing(
    temperature: float, top_k: int | None, student_excludes: bool, tokens: torch.Tensor
) -> None:
    teacher, student = model(2), model(1)
    teacher.__class__ = ExcludedTokens
    if student_excludes:
        student.__class__ = ExcludedTokens
    tokens = tokens.clamp(min=3)
    settings = DistillConfig(weight=1.0, temperature=temperature, top_k=top_k)
    found = Distiller(settings, teacher).losses(student, tokens).objective
    found.sum().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in student.parameters())
    log_p, log_q = (
        functional.log_softmax(each(tokens).logits[:, :-1].double() / temperature, -1)[..., 3:]
        for each in (teacher, student)
    )
    expected = temperature**2 * functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    if top_k == 6:  # a bound from below
        assert (found <= expected + 1e-4).all()
    else:
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_weight_is_linear_in_the_steps(tokens: torch.Tensor) -> None:
    distiller = Distiller(DistillConfig(weight=0.9, final_weight=0.1), model(2))
    losses, divergences = (
        Distiller(DistillConfig(weight=1e-9 if weight == 0 else weight), model(2)).losses(model(1), tokens).objective
        for weight in (0, 1.0)
    )
    for progress in (0.0, 0.25, 1.0):
        weight = 0.9 - 0.8 * progress
        found = distiller.losses(model(1), tokens, progress).objective
        torch.testing.assert_close(found, (1 - weight) * losses + weight * divergences, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hidden_weight", [0.0, 2.0])
def test_tokens_that_the_teacher_is_sure_of_have_the_next_token_loss(
    hidden_weight: float, tokens: torch.Tensor
) -> None:
    teacher, student = model(2), model(1)
    confidence = functional.softmax(teacher(tokens).logits[:, :-1], -1).amax(-1).detach()
    limit = float(confidence.median())
    settings = {"weight": 0.7, "hidden_weight": hidden_weight}
    whole = Distiller(DistillConfig(**settings), teacher).losses(student, tokens)
    found = Distiller(DistillConfig(**settings, max_confidence=limit), teacher).losses(student, tokens)
    sure = confidence > limit * (1 + 1e-5)
    clear = sure | (confidence < limit * (1 - 1e-5))  # the comparison in logarithms rounds at the limit itself
    assert 0 < int(sure.sum()) < sure.numel()
    torch.testing.assert_close(
        found.objective[clear], torch.where(sure, whole.losses, whole.objective)[clear], rtol=1e-6, atol=1e-6
    )


def test_a_run_records_the_objective_of_the_weight_in_its_steps(recipe: Recipe, tmp_path: Path) -> None:
    config = recipe(**{"continue": {"distill": {"weight": 1.0, "final_weight": 0.0}}})
    train(config, tmp_path / "run")
    plain = recipe(**{"continue": {"distill": {"weight": 1.0}}})
    train(plain, tmp_path / "plain")
    changing, constant = (
        [
            record.objective
            for record in read_records(tmp_path / run / "metrics.jsonl")
            if isinstance(record, StepTaken) and record.stage == "continue"
        ]
        for run in ("run", "plain")
    )
    assert changing[0] == constant[0]
    assert changing[-1] != constant[-1]


def test_the_top_k_and_the_rest_bound_the_divergence_from_below(tokens: torch.Tensor) -> None:
    def divergence(top_k: int | None) -> float:
        settings = DistillConfig(weight=1.0, temperature=2.0, top_k=top_k)
        return float(Distiller(settings, model(2)).losses(model(1), tokens).objective.sum().detach())

    growing = [divergence(top_k) for top_k in (1, 5, 20, 49)]
    assert growing[0] > 0
    assert growing == sorted(growing)
    # One token outside: the rest is that token, and both divergences are one number up to rounding. A term
    # p (log p - log q) is off by a few eps (1 + |log p|) p; over the vocabulary that is a few eps (1 + log 50) a token.
    rounding = 8 * torch.finfo(torch.float32).eps * 2.0**2 * tokens[:, 1:].numel() * (1 + math.log(50))
    assert growing[-1] == pytest.approx(divergence(None), abs=rounding, rel=0)
    assert divergence(50) == divergence(None)


def test_chunks_change_nothing(tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for chunk in (1024, 7):
        monkeypatch.setattr(distill, "CHUNK", chunk)
        student = model(1)
        distilled = Distiller(DistillConfig(top_k=10, hidden_weight=1.0, teacher="self"), None).losses
        wrapped = MaskedModel(student, Target(layers=2)).train()
        wrapped.sample_masks(torch.Generator().manual_seed(0))
        distilled(wrapped, tokens).objective.sum().backward()
        found.append([parameter.grad for parameter in student.parameters()])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("teacher", ["source", "self"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(teacher: str, tokens: torch.Tensor) -> None:
    wrapped = masked()
    settings = DistillConfig(weight=1.0, hidden_weight=2.0, teacher=teacher)
    distiller = Distiller(settings, model(0) if teacher == "source" else None)
    with wrapped.fixed_masks({kind: torch.ones_like(gate) for kind, gate in wrapped.gates.items()}):
        objective = distiller.losses(wrapped, tokens).objective
    torch.testing.assert_close(objective, torch.zeros_like(objective), atol=1e-5, rtol=0)


def test_the_unmasked_student_as_teacher_equals_a_copy(tokens: torch.Tensor) -> None:
    found = []
    for teacher in (None, model(0)):
        wrapped = masked()
        settings = DistillConfig(hidden_weight=1.0, teacher="source" if teacher else "self")
        distilled = Distiller(settings, teacher).losses(wrapped, tokens)
        distilled.objective.sum().backward()
        found.append((distilled, [parameter.grad for parameter in wrapped.parameters()]))
    torch.testing.assert_close(found[0][0].objective, found[1][0].objective)
    torch.testing.assert_close(found[0][1], found[1][1])


def test_skipping_pruned_units_changes_nothing(tokens: torch.Tensor) -> None:
    found = []
    for skip in (True, False):
        wrapped = masked(skip_pruned_units=skip)
        objective = Distiller(DistillConfig(hidden_weight=1.0), model(3)).losses(wrapped, tokens).objective
        objective.sum().backward()
        found.append((objective, wrapped.model.model.layers[0].mlp.up_proj.weight.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_a_pruned_student_is_compared_on_the_units_it_has(tokens: torch.Tensor) -> None:
    """Compare streams: without its last block a model's are the teacher's; of a narrower one only kept units count."""
    settings = DistillConfig(weight=0.0, hidden_weight=1.0)
    shallow = MaskedModel(model(), Target(layers=3))
    shallow.gates["layer"].data = torch.tensor([3.0, 2.0, 1.0, 0.0])
    student, kept = shallow.extract(), shallow.kept_units()
    losses = Distiller(settings, model(), kept).losses(student, tokens)
    torch.testing.assert_close(losses.objective, losses.losses)
    narrow = masked()
    student, kept = narrow.extract(), narrow.kept_units()
    distilled = Distiller(settings, model(), kept).losses(student, tokens)
    streams: list[torch.Tensor] = []
    theirs = [model().model(tokens[:, :-1], output_hidden_states=True).hidden_states[block + 1] for block in [0]]
    handle = student.model.layers[0].register_forward_hook(lambda module, inputs, output: streams.append(output))
    student(tokens[:, :-1])
    handle.remove()
    assert kept.layers[0] == 0
    teacher = theirs[0][..., kept.hidden]
    first = (streams[0] - teacher).square().sum(-1) / teacher.square().sum(-1)
    assert (distilled.objective - distilled.losses >= first / 3 - 1e-5).all()
    assert (distilled.objective > distilled.losses).all()


def test_a_run_with_distillation_resumes_bit_for_bit_and_records_its_objective(recipe: Recipe, tmp_path: Path) -> None:
    config = recipe(
        prune={"distill": {"teacher": "self", "hidden_weight": 0.1}, "cycles": 2, "protect": {"layers": [0]}},
        **{"continue": {"distill": {"weight": 0.7, "top_k": 8, "hidden_weight": 0.1}}},
    )
    train(config, tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(Interrupted):
            train(config, tmp_path / "parts", resume=True, stop=stop_after(6))  # the base is there already
    train(config, tmp_path / "parts", resume=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    steps = [each for each in read_records(tmp_path / "whole" / "metrics.jsonl") if isinstance(each, StepTaken)]
    for step in steps:
        assert (step.objective is None) == (step.stage == "pretrain")
        assert step.objective != step.loss
    risen = [step.scheduled["layer"] for step in steps if step.scheduled is not None]
    half = 1 - (2 / 3) ** 0.5
    assert risen == pytest.approx([half / 2, half, half, half, (half + 1 / 3) / 2, 1 / 3, 1 / 3, 1 / 3])

    check_charged_flops(config, tmp_path / "whole", tmp_path / "parts")


def check_charged_flops(config: RunConfig, whole: Path, parts: Path) -> None:
    """Check the FLOPs of a run against those of the same run in parts, and against its plan."""
    first, second = (list(read_records(run / "metrics.jsonl")) for run in (whole, parts))
    counts = [
        [(each.stage, each.charged_flops) for each in records if isinstance(each, StepTaken) and each.stage in STAGES]
        for records in (first, second)
    ]
    assert counts[0] == counts[1]
    ended = {each.stage: FlopCounts.of(each.flops) for each in first if isinstance(each, StageEnded)}
    assert counts[0][-1] == ("continue", ended["continue"].charged)
    assert {each.stage: each.flops for each in second if isinstance(each, StageEnded)} == {
        stage: asdict(ended[stage]) for stage in STAGES
    }
    assert isinstance(first[-1], RunEnded)
    assert FlopCounts.of(first[-1].flops) == ended["prune"] + ended["continue"]
    base = next(each for each in first if isinstance(each, ModelMeasured))
    planned = {stage.name: stage.flops for stage in plan_recipe(config, AutoConfig.from_pretrained(base.path)).stages}
    for stage in ("pretrain", "continue"):
        assert (ended[stage].training, ended[stage].teacher) == (planned[stage].training, planned[stage].teacher)
    assert ended["prune"].teacher == planned["prune"].teacher
    assert 0.4 * planned["prune"].training < ended["prune"].training < planned["prune"].training  # units are skipped


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"continue": {"distill": {"teacher": "self"}}}, "is for the prune stage"),
        ({"prune": {"distill": {"weight": 0.0}}}, "nothing is distilled"),
        ({"prune": {"distill": {"weight": 0.0, "final_weight": 0.0}}}, "nothing is distilled"),
        ({"prune": {"cycles": 9}}, "cycles 9 is more than the steps 8"),
        ({"prune": {"rescore_cycles": True}}, "rescore_cycles needs gates `deterministic` and gate_init"),
        ({"prune": {"gates": "deterministic", "mask_values": "soft"}}, "`soft` is for gates `hard_concrete`"),
        ({"prune": {"protect": {"layers": [0, 1, 2]}}}, "3 protected layers, but the target keeps 2"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    changes: dict[str, object], message: str, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(recipe(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_with_every_block_pruned_there_is_no_distance(tokens: torch.Tensor) -> None:
    wrapped = MaskedModel(model(), Target(layers=2)).train()
    with wrapped.fixed_masks({"layer": torch.zeros(4)}):
        distilled = Distiller(DistillConfig(weight=0.0, hidden_weight=1.0), model()).losses(wrapped, tokens)
    torch.testing.assert_close(distilled.objective, distilled.losses)


def test_a_student_is_unchanged(tokens: torch.Tensor) -> None:
    wrapped = masked()
    before = copy.deepcopy(wrapped.state_dict())
    Distiller(DistillConfig(teacher="self", hidden_weight=1.0), None).losses(wrapped, tokens)
    torch.testing.assert_close(wrapped.state_dict(), before, rtol=0, atol=0)
    assert not wrapped.model.model.layers[0]._forward_hooks
