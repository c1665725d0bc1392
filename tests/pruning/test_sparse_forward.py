"""Skipping pruned units changes the cost of a step, and nothing else."""

import copy
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from drpruning.pruning import MaskedModel, Target, masked_modules
from drpruning.pruning.sparse_forward import ActiveSet, find_active_units, gather, size_multiple, unit_entries

from ..rounding import assert_same_up_to_rounding, rounding_bound
from .conftest import CONFIGS, build
from .test_masked_model import TARGET, gradients, scattered


def pair(model, seed=0):
    """Wrap the model twice, with and without skipping, with about half of its units pruned."""
    skipping = scattered(MaskedModel(model, TARGET), seed)
    for gate in skipping.gates.values():
        gate.data -= 1.5
    masking = copy.deepcopy(skipping)
    masking.skip_pruned_units = False
    return skipping, masking


@pytest.mark.parametrize("seed", range(3))
def test_losses_and_gradients_are_those_of_the_masked_pass(any_model, tokens, seed):
    losses, pairs = [], pair(any_model.double(), seed)  # in float32 the order of sums shows
    for masked in pairs:
        masked.train().sample_masks(torch.Generator().manual_seed(seed))
        losses.append(masked(tokens, labels=tokens).loss)
        losses[-1].backward()
    skipping, masking = pairs
    assert len(skipping.applied.active.hidden) < 32
    # Four blocks of seven products, forward and backward; no inner dimension is longer than the vocabulary of 50
    torch.testing.assert_close(*losses, rtol=rounding_bound(products=28, inner=50), atol=0)
    assert_same_up_to_rounding(gradients(skipping), gradients(masking), products=56, inner=50)


def test_evaluation_is_that_of_the_masked_pass(any_model, tokens):
    skipping, masking = (masked.eval() for masked in pair(any_model))
    torch.testing.assert_close(skipping(tokens).logits, masking(tokens).logits, atol=1e-5, rtol=0)


def test_skipped_blocks_have_gradients_of_zero(tokens):
    masked = MaskedModel(build("llama-biases"), Target(layers=3))
    mask = torch.tensor([1.0, 0.0, 1.0, 0.5], requires_grad=True)
    with masked.fixed_masks({"layer": mask}):
        assert masked.applied.active.skipped_blocks == {1}
        masked(tokens, labels=tokens).loss.backward()
    layers = masked.model.model.layers
    assert all((parameter.grad == 0).all() for parameter in layers[1].parameters())
    assert all((parameter.grad != 0).any() for parameter in layers[2].parameters())
    assert mask.grad is not None


def test_a_pruned_first_block_keeps_its_place_in_a_cache(tokens):
    """Generate under fixed masks: with a cache every block is computed, so positions are right."""
    masked = MaskedModel(build("llama"), Target(layers=3)).eval()
    with masked.fixed_masks({"layer": torch.tensor([0.0, 1.0, 1.0, 1.0])}):
        cached = masked.model.generate(tokens, max_new_tokens=5, do_sample=False)
        uncached = masked.model.generate(tokens, max_new_tokens=5, do_sample=False, use_cache=False)
    assert torch.equal(cached, uncached)


def test_gradient_checkpointing(tokens):
    plain = pair(build("llama-grouped"))[0].train()
    checkpointed = copy.deepcopy(plain)
    model = checkpointed.model
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
    for masked in (plain, checkpointed):
        masked.sample_masks(torch.Generator().manual_seed(1))
        masked(tokens, labels=tokens).loss.backward()
    torch.testing.assert_close(gradients(plain), gradients(checkpointed))


def test_a_whole_run_ends_with_the_weights_of_the_masked_run():
    """Include momentum: a skipped unit moves like one with a gradient of zero."""
    ends = []
    for masked in pair(build("llama-tied").double()):  # in float32 Adam blows up every difference in rounding
        for parameter in (*masked.gates.values(), *masked.multipliers.values()):
            parameter.data = parameter.data.double()
        groups = masked.parameter_groups()
        optimizer = torch.optim.AdamW(
            [
                {"params": groups["weights"], "lr": 1e-3},
                {"params": groups["gates"], "lr": 0.1},
                {"params": groups["multipliers"], "lr": 0.05, "maximize": True},
            ],
            weight_decay=0.01,
            eps=1e-5,  # else a gradient of nothing but rounding moves a weight by a whole step
        )
        generator = torch.Generator().manual_seed(3)
        for step in range(200):
            tokens = torch.randint(50, (2, 10), generator=generator)
            masked.train().sample_masks(generator)
            (masked(tokens, labels=tokens).loss + masked.constraint(step)).backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append({name: parameter.detach() for name, parameter in masked.named_parameters()})
    skipping, masking = ends
    # A float64 gradient is off by some 1e-15; divided by Adam's eps of 1e-5, times a rate of 0.1, that is 1e-11 a step
    # at most, and 200 steps let it grow. A unit that moved otherwise would differ by a rate or more.
    for key, parameter in masking.items():
        torch.testing.assert_close(skipping[key], parameter, rtol=0, atol=1e-6, msg=key)


def test_active_units_are_rounded_up():
    masks = {
        "layer": torch.tensor([1.0, 0.0]),
        "head": torch.tensor([[0.0, 0.3], [1.0, 0.0]]),
        "intermediate": torch.tensor([[0.0] * 20 + [1.0] * 3 + [0.0], [0.0] * 24]),
        "hidden": torch.tensor([0.0, 1.0] * 12),
    }
    active = find_active_units(masks, query_width=4, key_value_width=2)
    assert active.skipped_blocks == {1}
    assert active.query[0].tolist() == [4, 5, 6, 7]
    assert active.key_value[0].tolist() == [2, 3]
    # rounded up to 8 with the first pruned units, in ascending order
    assert active.intermediate[0].tolist() == [0, 1, 2, 3, 4, 20, 21, 22]
    assert active.hidden.tolist() == sorted([*range(1, 24, 2), 0, 2, 4, 6])


class Operations(TorchDispatchMode):
    """Counts operations except views."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def row_by_row(active_set, query_width, key_value_width):
    """Return the units of an active set, each row sorted alone."""
    counts = iter(active_set.counts.read().tolist())
    found = {"head": {}, "intermediate": {}, "hidden": {}}
    for kind, rows in active_set.active.items():
        for row, active in enumerate(rows):
            multiple = 1 if kind == "head" else size_multiple(len(active))
            size = multiple * max(1, math.ceil(next(counts) / multiple))
            order = torch.argsort(active.logical_not().byte(), stable=True)
            found[kind][row] = order[:size].sort().values
    heads = found["head"].items()
    found["query"] = {row: unit_entries(each, query_width) for row, each in heads}
    found["key_value"] = {row: unit_entries(each, key_value_width) for row, each in heads}
    return found


@pytest.mark.parametrize("alike", [True, False])
def test_rows_of_one_size_are_sorted_together(alike):
    """Use 32 blocks: a sort for each row took 266 operations, 6 for each further block."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"head": (32, 32), "intermediate": (32, 704), "hidden": (1, 256)}
    masks = {}
    for kind, (rows, units) in shapes.items():
        scores = torch.rand(rows, units, generator=generator)
        shares = torch.full((rows, 1), 0.4) if alike else torch.linspace(0.2, 0.6, rows)[:, None]
        masks[kind] = (scores < shares).float() if kind != "head" else (scores.argsort(-1).argsort(-1) < 14).float()
    masks["hidden"] = masks["hidden"].view(-1)
    active_set = ActiveSet.of(masks)
    with Operations() as separate:
        expected = row_by_row(active_set, 4, 2)
    with Operations() as together:
        units = active_set.units(query_width=4, key_value_width=2)
    assert torch.equal(units.hidden, expected["hidden"][0])
    for axis in ("query", "key_value", "intermediate"):
        found = getattr(units, axis)
        assert list(found) == list(range(32))
        for block, each in found.items():
            assert torch.equal(each, expected[axis][block])
            assert each.is_contiguous()
    sizes = len({len(each) for each in units.intermediate.values()})
    assert (sizes <= 3) if alike else (sizes > 5)
    assert separate.count > 260
    assert together.count <= 18 + 3 * (sizes - 1)


def test_sizes_take_few_values():
    sizes = set()
    for count in range(1, 1377):
        mask = torch.zeros(1, 1376)
        mask[0, :count] = 1
        found = find_active_units({"intermediate": mask}, query_width=1, key_value_width=1).intermediate
        sizes.add(len(found[0]) if found else 1376)
    assert len(sizes) <= 17
    assert all(size % size_multiple(1376) == 0 or size == 1376 for size in sizes)


def test_gather_has_zero_gradient_at_other_entries():
    weight = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    rows, columns = torch.tensor([0, 3]), torch.tensor([1, 2, 5])
    assert torch.equal(gather(weight, rows, columns), weight[[0, 3]][:, [1, 2, 5]])
    assert gather(weight, None, None) is weight
    torch.autograd.gradcheck(lambda w: gather(w, rows, columns), weight)
    torch.autograd.gradcheck(lambda w: gather(w, None, columns), weight)


def test_micro_batches_find_active_units_once(tokens, monkeypatch):
    calls = []
    monkeypatch.setattr(
        masked_modules,
        "find_active_units",
        lambda masks, **widths: calls.append(1) or find_active_units(masks, **widths),
    )
    masked = pair(build("llama-grouped"))[0].train()
    fresh = copy.deepcopy(masked)
    generator = torch.Generator().manual_seed(5)
    masked.sample_masks(generator)
    calls.clear()
    for _ in range(3):
        masked(tokens)
        with masked.unmasked():  # a teacher between micro-batches changes nothing
            masked(tokens)
    assert len(calls) == 1 + 3 * 2  # one for the step; on entering a context, on leaving it
    masked.sample_masks(generator)
    calls.clear()
    masked(tokens)
    assert len(calls) == 1  # new masks
    with torch.no_grad():
        masked.gates["hidden"].fill_(9.0)
    masked(tokens)
    assert len(calls) == 2  # moved gates
    assert masked.applied.active.hidden.tolist() == list(range(32))
    fresh.sample_masks(torch.Generator().manual_seed(5))
    again = copy.deepcopy(fresh)
    torch.testing.assert_close(fresh(tokens).logits, again(tokens).logits)


@pytest.mark.skipif(torch.__version__ < "2.9", reason="breaks in the forward pass of transformers itself")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler calls at every input's
@pytest.mark.parametrize("skip_pruned_units", [False, True])
def test_blocks_share_compiled_graphs_over_a_whole_run(skip_pruned_units):
    """Include evaluations, and more blocks than the compiler's limit of versions, after which blocks run eagerly."""
    config = CONFIGS["llama"]()
    config.num_hidden_layers, steps, generator = 10, 40, torch.Generator()
    model = AutoModelForCausalLM.from_config(config)
    target = Target(layers=6, hidden=16, intermediate=16)
    masked = MaskedModel(
        model, target, skip_pruned_units=skip_pruned_units, warmup_steps=20, log_alpha_init=1.0
    ).train()
    torch.compiler.reset()
    counters.clear()
    graphs = CompileCounter()
    for block in model.model.layers:
        block.compile(backend=graphs)
    groups = masked.parameter_groups()
    optimizer = torch.optim.AdamW(
        [
            {"params": [*groups["weights"], *groups["gates"]], "lr": 0.3},
            {"params": groups["multipliers"], "lr": 0.1, "maximize": True},
        ],
        weight_decay=0.0,
    )
    met = set()
    for step in range(steps):
        masked.sample_masks(
            generator.manual_seed(step), next_generator=torch.Generator().manual_seed(step + 1), max_gate_step=0.4
        )
        tokens = torch.randint(50, (2, 10), generator=generator)
        (masked(tokens, labels=tokens).loss + masked.constraint(step)).backward()
        active = masked.applied.active.in_block(3)
        met.add((len(masked.applied.active.skipped_blocks), *(len(active[axis]) for axis in sorted(active))))
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            with torch.no_grad():
                masked.eval()(tokens)
            masked.train()
    assert not skip_pruned_units or len(met) > 8  # skipped blocks, and sizes
    assert 2 <= graphs.frame_count <= 6
    assert not counters["graph_break"]
    assert not counters["unimplemented"]  # counts when the limit was hit
