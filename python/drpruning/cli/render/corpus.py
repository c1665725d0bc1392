"""Output of `drpruning inspect CORPUS` and `prepare`: domains, lengths, samples and warnings of a corpus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from drpruning.corpus.manifest import SPLITS
from drpruning.formatting import count, printable, printable_lines
from drpruning.tables import Row, Table
from drpruning.tables.terminal import print_table, select_columns, split_columns

if TYPE_CHECKING:
    from rich.console import Console

    from drpruning.corpus.manifest import Manifest
    from drpruning.prepare.inspection import Inspection, StaticMixtures

BARS = " ▁▂▃▄▅▆▇█"

LEFT_OUT = {
    "duplicate": "documents left out because an equal one was kept",
    "empty": "documents left out because they are empty",
    "overlap": "held-out documents left out because training text has more than half of their 13-grams",
    "near_duplicate": "documents left out because a similar one was kept",
    "empty_file": "files without text",
    "invalid_utf8": "texts in which invalid UTF-8 was replaced, or that cannot be used because of it",
    "invalid_utf8_skipped": "texts left out because they are not valid UTF-8",
    "broken_json": "lines left out because they are not JSON objects",
    "missing_text": "entries left out because they have no text",
    "too_long": "entries left out because they do not fit into memory",
    "damaged_file": "files that are truncated or damaged",
    "unreadable_file": "files that could not be opened",
    "inexact_cut": "places where a long document was split, at which tokens may differ",
}


def print_inspection(
    console: Console,
    manifest: Manifest,
    found: Inspection,
    samples: Mapping[str, str],
    mixtures: StaticMixtures,
    recipe: str | None,
) -> None:
    """Print everything about a corpus.

    Args:
        console: Where to print.
        manifest: Contents of ``corpus.json``.
        found: Statistics and warnings.
        samples: Beginning of each domain's text; empty strings if it cannot be decoded.
        mixtures: Shares and epochs of static mixtures.
        recipe: Name of the recipe whose epochs are printed, if any.
    """
    tokenizer = manifest.tokenizer
    console.print(
        f"tokenizer {printable(tokenizer.name)}, {tokenizer.vocab_size:,} ids, end token {tokenizer.eos_id}",
        highlight=False,
        markup=False,
    )
    print_domains(console, manifest)
    _print_lengths(console, found)
    _print_mixtures(console, mixtures)
    if recipe:
        epochs = ", ".join(f"{name} {about.epochs:.2f}" for name, about in found.domains.items() if about.epochs)
        console.print(f"epochs of the training tokens under {recipe}: {epochs}", highlight=False, markup=False)
    if any(samples.values()):
        rows = [Row.of(name, " ".join(text.split())) for name, text in samples.items()]
        print_table(console, Table(["domain", "begins with"], rows, text_columns=("begins with",)))
    for warning in found.warnings:
        console.print(f"warning: {printable_lines(warning)}", style="yellow", highlight=False, markup=False)


def inspection_to_dict(
    manifest: Manifest, found: Inspection, samples: Mapping[str, str], mixtures: StaticMixtures
) -> dict[str, Any]:
    """Return everything about a corpus as JSON-able data."""
    body = manifest_to_dict(manifest)
    for name, about in found.domains.items():
        body["domains"][name] |= {
            "sample": samples[name],
            "lengths": about.lengths,
            "longest": about.longest,
            "unknown_share": manifest.domains[name].unknown_share,
            "byte_share": manifest.domains[name].byte_share,
            "epochs": about.epochs,
        }
    return body | {"static_mixtures": asdict(mixtures), "warnings": found.warnings}


def _print_mixtures(console: Console, mixtures: StaticMixtures) -> None:
    """Print share and epochs of each domain in static mixtures."""
    names = list(mixtures.shares)
    if not names:
        return
    rows = [
        Row.of(
            domain, *(f"{mixtures.shares[name][domain]:.3f} ({mixtures.epochs[name][domain]:.3g})" for name in names)
        )
        for domain in mixtures.shares[names[0]]
    ]
    title = f"Static mixtures: share (epochs) in a run of {count(mixtures.tokens)} tokens"
    print_table(console, Table(["domain", *names], rows, title=title))


def _print_lengths(console: Console, found: Inspection) -> None:
    """Print a histogram of document lengths by domain."""
    columns = ["domain", "tokens in a document: 1, 2 to 3, 4 to 7, ...", "median", "longest"]
    rows = []
    for name, about in found.domains.items():
        most = max(about.lengths, default=0) or 1
        bars = "".join(BARS[-(-count * (len(BARS) - 1) // most)] for count in about.lengths)
        rows.append(Row.of(name, bars, f"{about.median:,}", f"{about.longest:,}"))
    print_table(console, Table(columns, rows, text_columns=columns[1:2]))


def print_domains(console: Console, manifest: Manifest) -> None:
    """Print documents and tokens of each split and domain, and the number of omitted documents."""
    held_out = [f"{split}\n{what}" for split in SPLITS[1:] for what in ("documents", "tokens")]
    columns = ["domain", "documents", "tokens", "bytes per\ntoken", *held_out]
    rows = []
    for name, domain in manifest.domains.items():
        ratio = domain.bytes_per_token
        counts = [f"{count:,}" for split in SPLITS for count in (domain.documents_of(split), domain.tokens_of(split))]
        rows.append(Row.of(name, *counts[:2], "" if ratio is None else f"{ratio:.2f}", *counts[2:]))
    table = Table(columns, rows)
    if len(list(split_columns(table, console.width, repeated=1))) == 1:
        print_table(console, table)
    else:  # training text, then held-out text
        print_table(console, select_columns(table, range(4)))
        console.print()
        print_table(console, select_columns(table, [0, *range(4, len(columns))]))
    for reason, meaning in LEFT_OUT.items():
        counts = [
            f"{name} {domain.left_out[reason]:,}"
            for name, domain in manifest.domains.items()
            if reason in domain.left_out
        ]
        if counts:
            console.print(f"{meaning}: {', '.join(counts)}", highlight=False, markup=False)
    if divided := [name for name, domain in manifest.domains.items() if domain.divides_held_out]:
        console.print(
            "validation and test divide the rows of the same documents, which are too few for two splits: "
            f"{', '.join(divided)}",
            highlight=False,
            markup=False,
        )


def manifest_to_dict(manifest: Manifest) -> dict[str, Any]:
    """Return tokenizer, documents and tokens of each domain, and the number of omitted documents, for JSON."""
    return {
        "tokenizer": {
            "name": manifest.tokenizer.name,
            "vocab_size": manifest.tokenizer.vocab_size,
            "eos_id": manifest.tokenizer.eos_id,
        },
        "domains": {
            name: {
                "documents": domain.documents,
                "tokens": domain.tokens,
                **{f"{split}_documents": domain.documents_of(split) for split in SPLITS[1:]},
                **{f"{split}_tokens": domain.tokens_of(split) for split in SPLITS[1:]},
                "held_out_share": domain.held_out_share,
                "bytes_per_token": domain.bytes_per_token,
                "left_out": domain.left_out,
            }
            for name, domain in manifest.domains.items()
        },
    }
