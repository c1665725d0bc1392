"""What follows from several cases together, and all of it as Markdown."""

from __future__ import annotations

from typing import Any

GIB = 2**30


def derived(results: list[dict[str, Any]], warmup: float) -> dict[str, Any]:
    """What follows from several cases together: None where one of them was not measured.

    Args:
        results: Of the cases.
        warmup: Part of the prune stage over which the sparsity rises.
    """
    steps = {each["name"].partition(", ")[2]: each["step_seconds"] for each in results if "step_seconds" in each}
    opened, bare = steps.get("masks open"), steps.get("without masks")
    skipped, computed = steps.get("masks at the target, skipped"), steps.get("masks at the target, computed")
    mean = None
    if opened and skipped:
        tokens = next(each["tokens_per_step"] for each in results if each.get("masks") == "open")
        mean = tokens / (warmup * (opened + skipped) / 2 + (1 - warmup) * skipped)
    saved = next((each["checkpoint"] for each in results if isinstance(each.get("checkpoint"), dict)), None)
    return {
        "masks_step_ratio": opened / bare if opened and bare else None,
        "skipping_speedup": computed / skipped if skipped and computed else None,
        "pruning_mean_tokens_per_second": mean,
        "checkpoint_share_at_one_per_500_steps": saved["share_at_one_per_500_steps"] if saved else None,
    }


TARGETS = {
    "masks_step_ratio": ("step with masks at one / without", "at most 1.02"),
    "skipping_speedup": ("step at the target: computed / skipped", ""),
    "pruning_mean_tokens_per_second": ("tokens/s of a prune stage, mean, from its first and last", "14,000 for 7B"),
    "checkpoint_share_at_one_per_500_steps": ("longer by checkpoints, one in 500 steps", "under 2%"),
}


def table(body: dict[str, Any]) -> str:
    """The JSON file as Markdown."""
    machine = body["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "cuda", "transformers", "drpruning"))
    lines = [
        f"{machine['card']}, {versions}, {body['started'][:10]}",
        "",
        "| case | tokens/s | MFU | peak GiB (planned) | loader wait | waits | target |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in body["cases"]:
        if each["outcome"] != "measured":
            lines.append(f"| {each['name']} | {each['outcome']} | | | | | {each['target']} |")
            continue
        memory = f"{(each['reserved_bytes'] or each['memory_bytes']) / GIB:.1f}"
        if each["planned_bytes"] is not None:
            memory += f" ({each['planned_bytes'] / GIB:.1f})"
        lines.append(
            f"| {each['name']} | {each['tokens_per_second']:,.0f} | {each['utilisation']:.1%} | {memory} "
            f"| {each['loader_wait_share']:.2%} | {'' if each['waits_per_step'] is None else each['waits_per_step']} "
            f"| {each['target']} |"
        )
    lines += ["", "| | measured | target |", "|---|---|---|"]
    for name, (title, target) in TARGETS.items():
        value = body["derived"][name]
        shown = "" if value is None else f"{value:,.0f}" if value > 100 else f"{value:.3f}"
        lines.append(f"| {title} | {shown} | {target} |")
    return "\n".join(lines) + "\n"
