"""A stored teacher: its samples are unbiased, its files are checked, and a run that reads it needs no teacher."""

import json
import math
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional
from transformers import AutoConfig, MistralConfig

from drpruning.cli import main
from drpruning.config import DistillConfig, RunConfig, TrainingConfig
from drpruning.corpus import Corpus
from drpruning.errors import ConfigError, CorpusError, DrpruningError
from drpruning.planning.recipe import plan_recipe
from drpruning.records import StepTaken, read_records
from drpruning.sampler import DomainSampler
from drpruning.train import stages, teach, teacher_files, teacher_samples
from drpruning.train.base_model import base_cache
from drpruning.train.loop import Interrupted
from drpruning.train.model_runtime import ModelRuntime, choose_attention
from drpruning.train.run import train
from drpruning.train.state import StageState, step_seed
from drpruning.train.stored_teacher import check_rows, longest_stage, rows_of_stage
from drpruning.train.teacher_files import SampledTargets, StoredTeacher, TeacherIdentity, TopKTargets
from drpruning.train.teacher_samples import _ChunkedDistillation, pad_samples, sample, sampled_losses, uniform_numbers

from .test_distill import ExcludedTokens, model
from .test_run import stop_after, weights

Recipe = Callable[..., RunConfig]
STAGES = ("prune", "continue")


# ---- samples


def test_each_count_is_the_expected_one_rounded_down_or_up() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, 37, generator=generator)
    uniforms = torch.rand(200, generator=generator, dtype=torch.float64)
    lengths, ids, counts = sample(logits, uniforms, 50, temperature=1.5)
    padded, probabilities = pad_samples(lengths, ids, counts, 50)
    dense = torch.zeros(200, 37).scatter_add_(1, padded, 50 * probabilities)
    assert lengths.max() == padded.shape[1]
    torch.testing.assert_close(dense.sum(-1), torch.full((200,), 50.0), rtol=1e-6, atol=0)
    expected = 50 * functional.softmax(logits.double() / 1.5, -1)
    # the probabilities are rounded to float32, and 37 of them are summed
    assert ((dense - expected).abs() <= 1 + 50 * 37 * torch.finfo(torch.float32).eps).all()


def test_draws_are_a_function_of_seed_domain_row_and_position() -> None:
    logits = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    uniforms = torch.from_numpy(np.concatenate([uniform_numbers(3, "web", row, 4) for row in (7, 2, 9)]))
    whole = sample(logits, uniforms, 20)
    parts = [sample(logits[at : at + 4], uniforms[at : at + 4], 20) for at in (0, 4, 8)]
    for one, others in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(one, torch.cat(others))
    distinct = {uniform_numbers(*key, 1)[0] for key in [(3, "web", 7), (3, "web", 8), (3, "code", 7), (4, "web", 7)]}
    assert len(distinct) == 4


def gradients(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, ids: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the cross-entropy against each sample, at temperature 1.3, in its hidden state."""
    hidden_ND = hidden_ND.clone().requires_grad_()
    both = _ChunkedDistillation.apply(hidden_ND, weight_VD, torch.zeros(len(ids), dtype=torch.long), ids, p, 1.3, 512)
    both[1].sum().backward()
    assert hidden_ND.grad is not None
    return hidden_ND.grad


def test_the_mean_gradient_is_that_of_the_whole_divergence() -> None:
    """Test each coordinate at alpha 0.001 in all (Bonferroni), seed fixed, over 4000 samples of 8 draws."""
    generator = torch.Generator().manual_seed(2)
    samples, vocabulary, width = 4000, 31, 6
    teacher, hidden = 2 * torch.randn(1, vocabulary, generator=generator), torch.randn(1, width, generator=generator)
    weight = torch.randn(vocabulary, width, generator=generator)
    uniforms = torch.from_numpy(uniform_numbers(5, "web", 0, samples))
    drawn = pad_samples(*sample(teacher.expand(samples, -1), uniforms, 8, 1.3), 8)
    found = gradients(hidden.expand(samples, -1), weight, *drawn).double()

    exact = hidden.double().requires_grad_()
    log_q = functional.log_softmax(exact @ weight.double().T / 1.3, -1)
    log_p = functional.log_softmax(teacher.double() / 1.3, -1)
    (1.3**2 * functional.kl_div(log_q, log_p, log_target=True, reduction="sum")).backward()
    assert exact.grad is not None
    limit = stats.norm.isf(0.001 / 2 / width) * found.std(0) / math.sqrt(samples)
    assert (found.std(0) > 0.01).all()
    assert ((found.mean(0) - exact.grad[0]).abs() < limit).all()


def test_the_likeliest_tokens_alone_would_be_biased() -> None:
    """Check that the renormalised top 8 fail by more than the limit above, so that the test above can fail."""
    generator = torch.Generator().manual_seed(2)
    teacher, hidden = 2 * torch.randn(1, 31, generator=generator), torch.randn(1, 6, generator=generator)
    weight = torch.randn(31, 6, generator=generator)
    p = functional.softmax(teacher / 1.3, -1)
    top, ids = p.topk(8)
    every = torch.arange(31)[None]
    whole, biased = gradients(hidden, weight, every, p), gradients(hidden, weight, ids, top / top.sum())
    assert (whole - biased).abs().max() > 0.05


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_chunks_of_hidden_states_and_all_logits_give_the_same(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_samples, "TOKENS", 7)
    tokens = torch.randint(50, (3, 11), generator=torch.Generator().manual_seed(5))
    teacher = model(2)(tokens).logits[:, :-1].flatten(0, 1).detach()
    drawn = pad_samples(*sample(teacher, torch.rand(30, dtype=torch.float64), 20, temperature), 20)
    found = []
    for runtime in (ModelRuntime(), ModelRuntime(cross_entropy=lambda *_: torch.empty(0), chunk=7)):
        student = model(1)
        student.runtime = runtime
        losses, divergences = sampled_losses(student, tokens, *drawn, temperature)
        (0.3 * losses + 0.7 * divergences).sum().backward()
        found.append((losses, divergences, [parameter.grad for parameter in student.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    log_q = functional.log_softmax(model(1)(tokens).logits[:, :-1].flatten(0, 1) / temperature, -1)
    expected = -(temperature**2) * (drawn[1] * log_q.gather(-1, drawn[0])).sum(-1)
    torch.testing.assert_close(found[0][1], expected)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_tokens_that_the_teacher_excludes_are_not_drawn_and_gradients_are_finite(temperature: float) -> None:
    tokens = torch.randint(3, 50, (3, 11), generator=torch.Generator().manual_seed(5))
    teacher = model(2)
    teacher.__class__ = ExcludedTokens
    logits = teacher(tokens).logits[:, :-1].flatten(0, 1).detach()
    ids, p = pad_samples(*sample(logits, torch.rand(30, dtype=torch.float64), 20, temperature), 20)
    assert (ids[p > 0] >= 3).all()
    assert (p == 0).any()  # padding has id 0
    # all logits; the same of a student that excludes these tokens; hidden states in chunks with their own backward pass
    for runtime, excludes in (
        (ModelRuntime(), False),
        (ModelRuntime(), True),
        (ModelRuntime(cross_entropy=lambda *_: torch.empty(0), chunk=7), False),
    ):
        student = model(1)
        student.runtime = runtime
        if excludes:
            student.__class__ = ExcludedTokens
        losses, divergences = sampled_losses(student, tokens, ids, p, temperature)
        (losses + divergences).sum().backward()
        assert divergences.isfinite().all()
        assert all(each.grad is not None and each.grad.isfinite().all() for each in student.parameters())


# ---- files


@pytest.fixture(scope="module")
def base(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a cache with the trained base of the recipe, its folder, and the corpus."""
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRPRUNING_CACHE", str(folder / "cache"))
        config = recipe(prune={"steps": 1}, **{"continue": {"steps": 1}})
        train(config, folder / "plain")  # leaves its base in the cache
        corpus = Corpus.open(config.data.corpus)
        yield SimpleNamespace(
            folder=folder, cache=folder / "cache", model=base_cache(config, corpus), corpus=corpus, config=config
        )


@pytest.fixture
def cached(base: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DRPRUNING_CACHE", str(base.cache))
    return base


def test_the_cache_of_a_base_has_its_storage_formats_in_its_name(base: Any) -> None:
    def folder(**training: str) -> Path:
        changed = base.config.training.model_copy(update=training)
        return base_cache(base.config.model_copy(update={"training": changed}), base.corpus)

    found = [
        folder(),
        folder(optimizer_state_format="int8"),
        folder(optimizer_state_format="bfloat16"),
        folder(dtype="bfloat16"),
        folder(dtype="bfloat16", weight_format="bfloat16"),
        folder(dtype="bfloat16", weight_format="bfloat16+low16"),
    ]
    assert len(set(found)) == len(found)
    assert folder(optimizer_state_format="float32", weight_format="float32") == found[0]


def identity(base: Any, **changes: Any) -> TeacherIdentity:
    values = {"method": "sample", "size": 50, "temperature": 1.0, "seed": 0, "dtype": "float32", "block_rows": 8}
    about = {"corpus": base.corpus.fingerprint, "domains": base.corpus.domains, "source": str(base.model)}
    return TeacherIdentity(**about, model="m", vocabulary=280, seq_len=32, document_mask=False, **{**values, **changes})


def teacher_of(base: Any) -> Any:
    return teach.load_teacher(identity(base), torch.device("cpu"), base.corpus)


def store(base: Any, folder: Path, *, shard: tuple[int, int] = (0, 1), batch_size: int = 4, **changes: Any) -> None:
    found = identity(base, **changes)
    loaded = teacher_of(base)
    teach.open_teacher_folder(folder, found, resume=True)
    rows = {"sums": np.arange(20), "records": np.array([0, 3, 17, 18])}
    teach.store_teacher(folder, found, loaded, base.corpus, rows, shard=shard, batch_size=batch_size)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_rows_are_read_as_the_teacher_computes_them(cached: Any, tmp_path: Path) -> None:
    store(cached, tmp_path / "sample")
    store(cached, tmp_path / "top_k", method="top_k", size=7)
    teacher = teacher_of(cached)
    numbers, domains = [18, 5, 3], [2, 0, 2]
    assert cached.corpus.domains == ("sums", "words", "records")
    rows = [
        cached.corpus.read_rows(cached.corpus.domains[at], [row], 32) for at, row in zip(domains, numbers, strict=True)
    ]
    logits = teacher(torch.from_numpy(np.concatenate(rows))).logits[:, :-1].flatten(0, 1).detach()
    p = functional.softmax(logits.double(), -1)

    read = StoredTeacher(tmp_path / "sample").read(domains, numbers)
    assert isinstance(read, SampledTargets)
    dense = torch.zeros(93, 280).scatter_add_(
        1, torch.from_numpy(read.ids).long(), torch.from_numpy(read.probabilities)
    )
    assert (50 * (dense - p).abs() <= 1.01).all()
    read = StoredTeacher(tmp_path / "top_k").read(domains, numbers)
    assert isinstance(read, TopKTargets)
    assert read.log_probabilities.shape == (93, 8)
    torch.testing.assert_close(
        torch.from_numpy(read.log_probabilities[:, :-1].copy()).double(),
        p.log().gather(-1, torch.from_numpy(read.ids)),
        rtol=1e-4,
        atol=1e-4,
    )
    np.testing.assert_allclose(np.exp(read.log_probabilities).sum(-1), 1, rtol=1e-5)
    stored = StoredTeacher(tmp_path / "sample")
    assert stored.rows(2).tolist() == [0, 3, 17, 18]
    assert stored.has([2, 2, 1, 0], [3, 4, 0, 19]) == [True, False, False, True]


def test_shards_and_killed_jobs_write_the_same_bytes(cached: Any, tmp_path: Path) -> None:
    store(cached, tmp_path / "whole")
    for own in (1, 0, 2):
        store(cached, tmp_path / "shards", shard=(own, 3))
    assert content(tmp_path / "shards") == content(tmp_path / "whole")

    class KilledError(Exception):
        pass

    def kill(progress: teach.Progress) -> None:
        raise KilledError

    found = identity(cached)
    teach.open_teacher_folder(tmp_path / "killed", found, resume=False)
    loaded = teacher_of(cached)
    with pytest.raises(KilledError):
        teach.store_teacher(
            tmp_path / "killed", found, loaded, cached.corpus, {"sums": np.arange(20)}, batch_size=4, on_block=kill
        )
    (tmp_path / "killed/blocks/000-000000001.bin").write_bytes(b"a block without the file that completes it")
    store(cached, tmp_path / "killed")
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    with pytest.raises(ConfigError, match="--resume"):
        teach.open_teacher_folder(tmp_path / "whole", found, resume=False)
    with pytest.raises(ConfigError, match="its seed is 0, not 1"):
        teach.open_teacher_folder(tmp_path / "whole", replace(found, seed=1), resume=True)


def store_rows(base: Any, folder: Path, rows: Sequence[int]) -> teach.Progress:
    """Store rows of the first domain, each computed alone so that its record does not depend on the others."""
    loaded = teacher_of(base)
    teach.open_teacher_folder(folder, identity(base), resume=True)
    return teach.store_teacher(folder, identity(base), loaded, base.corpus, {"sums": np.array(rows)}, batch_size=1)


def test_a_job_with_other_rows_computes_those_that_a_block_lacks_and_keeps_the_others(
    cached: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "t"
    assert store_rows(cached, folder, [0, 2, 5, 9]).tokens == 4 * 32  # blocks of 8 rows
    assert store_rows(cached, folder, [1, 2, 7, 10]).tokens == 3 * 32
    assert StoredTeacher(folder).rows(0).tolist() == [0, 1, 2, 5, 7, 9, 10]
    store_rows(cached, tmp_path / "whole", [0, 1, 2, 5, 7, 9, 10])
    assert content(folder) == content(tmp_path / "whole")

    assert store_rows(cached, folder, [2]).tokens == 0
    assert content(folder) == content(tmp_path / "whole")

    # ---- a damaged record is computed again with the rows that the block lacks, or left out
    path = folder / "blocks/000-000000000.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")  # row 7
    store_rows(cached, folder, [3])
    assert StoredTeacher(folder).rows(0).tolist() == [0, 1, 2, 3, 5, 9, 10]
    StoredTeacher(folder).read([0] * 5, [0, 1, 2, 3, 5])


@pytest.mark.parametrize("killed_at", ["the block", "its description"])
def test_a_job_that_is_killed_while_it_replaces_a_block_loses_no_row(
    killed_at: str, cached: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def kill(path: Path, *content: str) -> Any:
        if killed_at == "the block" or "replaced" not in content[0]:
            raise KilledError
        return write_text(path, *content)

    store_rows(cached, tmp_path / "t", [0, 2])
    write_text = teacher_files.write_text
    with monkeypatch.context() as patch:
        patch.setattr(teacher_files, "open_new" if killed_at == "the block" else "write_text", kill)
        with pytest.raises(KilledError):
            store_rows(cached, tmp_path / "t", [0, 1])
    stored = StoredTeacher(tmp_path / "t")
    assert stored.rows(0).tolist() == ([0, 2] if killed_at == "the block" else [0, 1, 2])
    stored.read([0, 0], [0, 2])
    assert store_rows(cached, tmp_path / "t", [0, 1, 3]).tokens == 32 * (2 if killed_at == "the block" else 1)
    store_rows(cached, tmp_path / "whole", [0, 1, 2, 3])
    assert content(tmp_path / "t") == content(tmp_path / "whole")


def test_resuming_with_another_seed_or_fewer_rows_deletes_no_row(cached: Any, recipe: Recipe, tmp_path: Path) -> None:
    own = "--set", f"pretrain.seed={cached.config.seed}"  # the same base
    folder = stored_by(recipe, tmp_path / "teacher", *own, "--set", "seed=1")
    first = [set(StoredTeacher(folder).rows(domain)) for domain in range(3)]
    stored_by(recipe, folder, *own, "--set", "seed=2", "--resume")
    both = [set(StoredTeacher(folder).rows(domain)) for domain in range(3)]
    assert all(one <= two for one, two in zip(first, both, strict=True))
    assert first != both
    before = content(folder)
    stored_by(recipe, folder, *own, "--set", "seed=2", "--rows", "1", "--resume")
    assert content(folder) == before


def test_another_batch_size_changes_counts_by_rounding_alone(cached: Any, tmp_path: Path) -> None:
    store(cached, tmp_path / "one", batch_size=1)
    store(cached, tmp_path / "four", batch_size=4)
    dense = []
    for name in ("one", "four"):
        read = StoredTeacher(tmp_path / name).read([0] * 20, range(20))
        assert isinstance(read, SampledTargets)
        zeros = torch.zeros(620, 280)
        dense.append(zeros.scatter_add_(1, torch.from_numpy(read.ids).long(), torch.from_numpy(read.probabilities)))
    # a count moves only where a point is within the rounding of a sum: some 1e-6 of 31,000 points
    assert float((dense[0] - dense[1]).abs().sum()) * 50 <= 10


def test_damaged_files_raise_typed_errors(cached: Any, tmp_path: Path) -> None:
    store(cached, tmp_path / "good")
    generator = random.Random(0)
    paths = sorted(path.relative_to(tmp_path / "good") for path in (tmp_path / "good").rglob("*") if path.is_file())
    rejected = 0
    for number in range(120):
        folder = tmp_path / f"bad-{number % 2}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "good", folder)
        path = folder / generator.choice(paths)
        data = bytearray(path.read_bytes())
        kind, place = generator.randrange(3), generator.randrange(len(data))
        if kind == 0:
            data[place] ^= 1 << generator.randrange(8)
        elif kind == 1:
            del data[place:]
        else:
            data[place:place] = bytes(generator.randrange(256) for _ in range(9))
        path.write_bytes(data)
        try:
            stored = StoredTeacher(folder)  # closed when it is freed
            stored.rows(0), stored.rows(2)
            stored.read([0] * 20 + [2] * 4, [*range(20), 0, 3, 17, 18])
        except DrpruningError:
            rejected += 1
    assert rejected > 90  # others change a name or a space of a JSON file


def test_files_are_data_that_is_not_trusted(cached: Any, tmp_path: Path) -> None:
    """Ids outside of the vocabulary, with right checksums, do not reach an index."""
    store(cached, tmp_path / "t")
    path = tmp_path / "t/teacher.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocabulary": 40}))
    with pytest.raises(CorpusError, match="out of range"):
        StoredTeacher(tmp_path / "t").read([0], [1])
    path.write_text(json.dumps({**json.loads(path.read_text()), "size": 49, "vocabulary": 280}))
    with pytest.raises(CorpusError, match="out of range"):
        StoredTeacher(tmp_path / "t").read([0], [1])


# ---- runs


def distilled(recipe: Recipe, **settings: Any) -> RunConfig:
    return recipe(**{name: {"steps": 5, "distill": {"weight": 0.7, **settings}} for name in STAGES})


def stored_by(recipe: Recipe, folder: Path, *options: str, **settings: Any) -> Path:
    """Store the teacher of the recipe with these settings of distillation; return its folder."""
    file = folder.with_suffix(".yaml")
    file.write_text(distilled(recipe, **settings).to_yaml())
    main(["teach", "--recipe", str(file), "--out", str(folder), *options])
    return folder


def steps(folder: Path) -> list[StepTaken]:
    found = [each for each in read_records(folder / "metrics.jsonl") if isinstance(each, StepTaken)]
    return [each for each in found if each.stage in STAGES]


def test_a_stored_top_k_trains_as_the_teacher_does(cached: Any, recipe: Recipe, tmp_path: Path) -> None:
    stored = stored_by(recipe, tmp_path / "teacher", top_k=6)
    train(distilled(recipe, top_k=6), tmp_path / "teacher-runs")
    train(distilled(recipe, top_k=6, stored=str(stored)), tmp_path / "stored")
    for one, two in zip(steps(tmp_path / "stored"), steps(tmp_path / "teacher-runs"), strict=True):
        assert one.loss == pytest.approx(two.loss, rel=1e-4)
        assert one.objective == pytest.approx(two.objective, rel=1e-4)


def test_a_stored_sample_resumes_bit_for_bit_and_loads_no_teacher(
    cached: Any, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = stored_by(recipe, tmp_path / "teacher", "--block-rows", "8")
    config = distilled(recipe, stored=str(stored))
    made = []
    monkeypatch.setattr(stages, "Distiller", lambda *given: made.append(given) or stages_distiller(*given))
    train(config, tmp_path / "whole")
    assert len(made) == 2
    assert all(teacher is None for _, teacher, _, _ in made)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts", stop=stop_after(7))
    train(config, tmp_path / "parts", resume=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")

    # ---- rows that are not stored are computed: the same draws
    partial = tmp_path / "partial"
    shutil.copytree(stored, partial)
    for path in sorted((partial / "blocks").glob("*0.*")):
        path.unlink()
    with pytest.raises(ConfigError, match="that the stage can read"):
        train(distilled(recipe, stored=str(partial)), tmp_path / "error")
    assert not (tmp_path / "error").exists()
    train(distilled(recipe, stored=str(partial), missing="compute"), tmp_path / "compute")
    assert made[-1][1] is not None
    for one, two in zip(steps(tmp_path / "compute"), steps(tmp_path / "whole"), strict=True):
        assert one.objective == pytest.approx(two.objective, rel=1e-3)


stages_distiller = stages.Distiller


def test_a_budget_has_no_cost_of_a_teacher_that_is_stored(cached: Any, recipe: Recipe, tmp_path: Path) -> None:
    stored = stored_by(recipe, tmp_path / "teacher")
    settings = {"steps": 5, "charged_flops": 2e8, "distill": {"weight": 0.7, "stored": str(stored)}}
    config = recipe(prune=None, **{"continue": settings})
    planned = plan_recipe(config, AutoConfig.from_pretrained(cached.model)).stages[-1]
    train(config, tmp_path / "run")
    taken = steps(tmp_path / "run")
    assert len(taken) == planned.steps == 4
    assert taken[-1].charged_flops == planned.flops.charged


def test_a_stored_teacher_of_something_else_is_refused_before_training(
    cached: Any, recipe: Recipe, tmp_path: Path
) -> None:
    stored = str(stored_by(recipe, tmp_path / "teacher", "--rows", "1"))
    index = json.loads((tmp_path / "teacher/teacher.json").read_text())
    for settings, message in [
        ({"temperature": 2.0}, "expected prune.distill.temperature 2.0, found 1.0"),
        ({"top_k": 5}, "expected prune.distill.top_k 5, found None"),
        ({"stored": str(tmp_path)}, "holds no stored teacher"),
        ({}, "rows of domain 'sums'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            train(distilled(recipe, **{"stored": stored, **settings}), tmp_path / "run")
    for key, value in [("corpus", "other"), ("model", "other"), ("seq_len", 16), ("document_mask", True)]:
        (tmp_path / "teacher/teacher.json").write_text(json.dumps({**index, key: value}))
        with pytest.raises(ConfigError, match=f"expected .*{key} .*, found"):
            train(distilled(recipe, stored=stored), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stored": "t", "hidden_weight": 0.1}, "hidden_weight needs the teacher in each step"),
        ({"stored": "t", "max_confidence": 0.9}, "max_confidence needs the teacher in each step"),
        ({"stored": "t", "teacher": "self"}, "changes in training"),
        ({"missing": "compute"}, "missing needs `stored`"),
    ],
)
def test_settings_that_need_the_teacher_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillConfig(**settings)


def test_the_rows_of_a_stage_are_all_that_any_mixture_reads(cached: Any, recipe: Recipe) -> None:
    config, corpus = recipe(**{"continue": {"steps": 12, "batch_size": 4}}), cached.corpus
    needed = rows_of_stage(config, "continue", corpus)
    sampler = DomainSampler(
        corpus,
        {"sums": 1, "words": 1, "records": 1},
        seq_len=32,
        batch_size=4,
        seed=step_seed(config.seed, "continue", 0),
    )
    generator = random.Random(1)
    for _ in range(12):
        sampler.set_weights({name: generator.random() for name in corpus.domains})
        batch = next(sampler)
        assert all(row in needed[corpus.domains[at]] for at, row in zip(batch.domains, batch.rows, strict=True))
    assert all(len(rows) < corpus.num_rows(32)[name] for name, rows in needed.items() if name != "records")


def test_a_teacher_has_the_attention_of_a_run(cached: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(teach, "prepare", lambda model, *settings: given.append(settings))
    own = replace(identity(cached), dtype="bfloat16", document_mask=True)
    for training in (None, TrainingConfig(deterministic=True), TrainingConfig(attention="sdpa")):
        teach.load_teacher(own, torch.device("cpu"), cached.corpus, training)
    assert all(data.seq_len == own.seq_len and data.document_mask for _, data, _ in given)
    assert [runtime.dtype for runtime, _, _ in given] == ["bfloat16"] * 3
    window = MistralConfig(sliding_window=own.seq_len - 1, head_dim=64)
    whole = MistralConfig(sliding_window=own.seq_len, head_dim=64)
    (automatic, deterministic, fixed) = (
        [choose_attention(config, runtime, data, "cuda") for config in (window, whole)] for runtime, data, _ in given
    )
    assert automatic == ["auto", "flex_attention"]  # FlexAttention has no sliding window
    assert deterministic == ["auto", "auto"]
    assert fixed == ["sdpa", "sdpa"]
    with pytest.raises(ConfigError, match=r"training\.attention flex_attention"):
        teach.load_teacher(own, torch.device("cpu"), cached.corpus, TrainingConfig(attention="flex_attention"))


@pytest.mark.parametrize(
    ("changes", "options", "messages"),
    [
        (
            {name: {"distill": {"top_k": 300}} for name in STAGES},
            [],
            ["prune.distill.top_k is 300", "vocabulary of 280", "--set prune.distill.top_k=null"],
        ),
        ({name: {"distill": {"top_k": 3}} for name in STAGES}, ["--top-k", "280"], ["--top-k is 280", "Leave it out"]),
        (
            {"prune": {"distill": {}}, "continue": {"distill": {"temperature": 2.0}}},
            [],
            [
                "prune.distill.temperature is 1, continue.distill.temperature 2;",
                "--set prune.distill.temperature=2",
                "--set continue.distill=null",
            ],
        ),
        ({"prune": {"distill": {"top_k": 5}}, "continue": {"distill": {}}}, [], ["--set prune.distill.top_k=null"]),
        ({}, [], ["no section distill", "--set continue.distill.weight=0.5"]),
    ],
)
def test_errors_name_the_setting_and_a_change_that_helps(
    changes: Any,
    options: list[str],
    messages: list[str],
    cached: Any,
    recipe: Recipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe(**changes).to_yaml())
    with pytest.raises(SystemExit):
        main(["teach", "--recipe", str(file), "--out", str(tmp_path / "t"), *options])
    shown = capsys.readouterr().err
    assert all(message in shown for message in messages), shown


def test_a_budget_that_lengthens_the_stage_needs_the_rows_of_its_steps(
    cached: Any, recipe: Recipe, tmp_path: Path
) -> None:
    def budgeted(budget: float | None, **settings: Any) -> RunConfig:
        stage = {"steps": 2, "batch_size": 4, "charged_flops": budget, "distill": settings}
        return recipe(prune={"steps": 2}, mixture={"strategy": "constant"}, **{"continue": stage})

    plain = budgeted(None)
    planned = plan_recipe(plain, AutoConfig.from_pretrained(cached.model))
    after = next(stage for stage in planned.stages if stage.name == "continue").flops.charged
    budget = planned.charged_flops + 2 * after  # 4 steps more, and some where the prune stage skips units
    longest = longest_stage(budgeted(budget), "continue", cached.corpus)
    assert longest.steps >= 6
    few, more = (rows_of_stage(budgeted(each), "continue", cached.corpus) for each in (None, budget))
    assert sum(map(len, more.values())) > sum(map(len, few.values()))

    file = tmp_path / "recipe.yaml"
    file.write_text(plain.to_yaml())
    stored = tmp_path / "teacher"
    main(["teach", "--recipe", str(file), "--out", str(stored)])
    config = budgeted(budget, stored=str(stored))
    with pytest.raises(ConfigError, match="that the stage can read"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    check_rows(config, "continue", cached.corpus, plain.continue_)  # with the steps known, those rows are enough
    main(
        ["teach", "--recipe", str(file), "--set", f"continue.charged_flops={budget}", "--out", str(stored), "--resume"]
    )
    train(config, tmp_path / "run")
    taken = [step for step in steps(tmp_path / "run") if step.stage == "continue"]
    assert 6 <= len(taken) <= longest.steps


def test_a_rank_finds_its_rows_without_the_device(cached: Any) -> None:
    given = {"seq_len": 32, "batch_size": 8, "seed": 3, "world_size": 2}
    for rank in (0, 1):
        sampler = DomainSampler(cached.corpus, {"sums": 2, "words": 1, "records": 1}, rank=rank, **given)
        for _ in range(3):
            batch = next(sampler)
            found = StageState.row_numbers(SimpleNamespace(sampler=sampler), 1, 2)  # type: ignore[arg-type]
            assert found.domains[rank].tolist() == batch.domains[1:3].tolist()
            assert found.rows[rank].tolist() == batch.rows[1:3].tolist()
            sampler.set_weights({"sums": 1, "words": 1, "records": 2})
