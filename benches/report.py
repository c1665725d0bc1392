"""Measure time and memory of writing, opening and following a report: `python benches/report.py`.

Needs Chromium (`apt-get install chromium`) and Playwright from PyPI. Prints one table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

KINDS = ("layer", "head", "intermediate", "hidden")
CHROMIUM = "/usr/bin/chromium"


def write_run(folder: Path, steps: int, domains: int, eval_every: int) -> int:
    """Writes the records of a run as `drpruning train` would, with every field; returns their number."""
    folder.mkdir(parents=True)
    names = [f"domain-{at:02}" for at in range(domains)]
    share = {name: round(1 / domains, 6) for name in names}
    (folder / "recipe.yaml").write_text("name: bench\n")
    count = 0
    with (folder / "metrics.jsonl").open("w") as file:

        def write(kind: str, **fields: object) -> None:
            nonlocal count
            count += 1
            file.write(json.dumps({"kind": kind, "time": 1.8e9 + count, **fields}, separators=(",", ":")) + "\n")

        write("run_started", name="bench", recipe_hash="0", strategy="drpruning", seed=1, domains=names,
              reference_ratio=share, rho=0.1)  # fmt: skip
        write("model_measured", model="base", parameters=10**9, shape={}, losses=dict.fromkeys(names, 2.0))
        for stage, first, last in (("prune", 0, steps // 10), ("continue", steps // 10, steps)):
            for step in range(1, last - first + 1):
                loss = round(2 + math.exp(-step / steps * 8) + 0.1 * math.sin(step), 4)
                masks = {kind: round(0.5 * min(1, 10 * step / steps), 4) for kind in KINDS}
                pruning = (
                    {"expected": masks, "scheduled": masks, "multipliers": {kind: [loss, 10.0] for kind in KINDS}}
                    if stage == "prune"
                    else {}
                )
                write("step", stage=stage, step=step, tokens=step * 10**6, loss=loss, learning_rate=1e-4,
                      grad_norm=loss / 2, tokens_per_second=50000 + 10 * loss, utilisation=0.4, loader_wait=0.001,
                      memory=60 * 2**30, domain_losses=dict.fromkeys(names, loss),
                      domain_tokens=dict.fromkeys(names, 50000), skipped=False, **pruning)  # fmt: skip
                if step % eval_every == 0:
                    losses = {name: round(loss + at / 50, 4) for at, name in enumerate(names)}
                    write("evaluated", stage=stage, step=step, tokens=step * 10**6, parameters=1e9, losses=losses,
                          weights=share, reference_ratio=share, reference_loss=losses, excess_loss=losses,
                          predicted_loss=losses, predicted_band={name: [loss - 0.1, loss + 0.1] for name in names},
                          divergence=0.05)  # fmt: skip
        write("model_measured", model="recovered", parameters=10**8, shape={}, losses=dict.fromkeys(names, 2.1))
        write("run_ended", seconds=1e5)
    return count


def measure_page(url: str, wait: str) -> dict[str, float]:
    """Measure milliseconds from navigation to first paint and to all figures drawn, and megabytes of the renderer."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(url)
        page.wait_for_function(wait, timeout=60000)
        time.sleep(1)
        found = page.evaluate(
            "() => ({paint: performance.getEntriesByName('first-contentful-paint')[0].startTime,"
            " drawn: performance.getEntriesByName('drawn')[0].startTime,"
            " figures: +document.documentElement.dataset.drawn})"
        )
        found["renderer"] = max(_renderers(), default=math.nan)
        browser.close()
    return dict(found)


def _renderers() -> list[float]:
    """Return the proportional set size, in megabytes, of each Chromium renderer that this process started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"--type=renderer" in (process / "cmdline").read_bytes() and _descends(process):
                rolled = (process / "smaps_rollup").read_text()
                found.append(int(re.search(r"^Pss:\s+(\d+)", rolled, re.MULTILINE)[1]) / 1024)  # type: ignore[index]
        except OSError:
            continue
    return found


def _descends(process: Path) -> bool:
    at = int(process.name)
    while at > 1:
        if at == os.getpid():
            return True
        at = int((Path("/proc") / str(at) / "stat").read_text().rpartition(")")[2].split()[1])
    return False


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=50_000)
    options.add_argument("--records", type=int, default=1_000_000)
    options.add_argument("--domains", type=int, default=20)
    options.add_argument("--repeat", type=int, default=3)
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        write_run(run, arguments.steps, arguments.domains, 50)
        seconds, busy = [], []
        for _ in range(arguments.repeat):
            start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-m", "drpruning", "report", str(run)], check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(time.perf_counter() - start)
            busy.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        page = run / "report.html"
        visits = [
            measure_page(page.as_uri(), "document.documentElement.dataset.drawn") for _ in range(arguments.repeat)
        ]
        size = _size(run / "metrics.jsonl")
        print(f"report of {arguments.steps:,} steps, {arguments.domains} domains ({size} of records)")
        print(f"  written, process start to end  {statistics.median(seconds):.2f} s")
        print(f"  of which on a processor        {statistics.median(busy):.2f} s")
        print(f"  size                           {page.stat().st_size / 1e6:.2f} MB")
        _print(visits)
        short = Path(folder) / "short"
        write_run(short, 900, 7, 50)  # fewer steps than the bins of a figure, so each new step is a point
        lines = (short / "metrics.jsonl").read_text().splitlines(keepends=True)
        (short / "metrics.jsonl").write_text("".join(lines[:-2]))  # an unfinished run
        late = update_seconds(short, 3 * arguments.repeat)
        print(f"live page, from a record written to its point drawn: median and maximum of {len(late)}")
        print(f"  {statistics.median(late):.2f}; {max(late):.2f} s")
        live = Path(folder) / "live"
        count = write_run(live, int(arguments.records / (1 + 1 / 400)), 7, 400)
        start = time.perf_counter()
        server, url = watch(live)
        try:
            early = measure_page(url, "document.documentElement.dataset.drawn")
            while "ended" not in _status(url):
                time.sleep(1)
            print(f"live page of {count:,} records ({_size(live / 'metrics.jsonl')})")
            print(f"  opened while the server reads, first paint  {early['paint']:.0f} ms")
            print(f"  all read after                              {time.perf_counter() - start:.0f} s")
            _print([measure_page(url, "document.documentElement.dataset.drawn") for _ in range(arguments.repeat)])
            status = (Path("/proc") / str(server.pid) / "status").read_text()
            for name in ("VmRSS", "VmHWM"):
                kib = next(line.split()[1] for line in status.splitlines() if line.startswith(name))
                print(f"  server, {name:<22} {int(kib) / 1024:.0f} MB")
        finally:
            server.terminate()
            server.wait()


def update_seconds(folder: Path, repeat: int) -> list[float]:
    """Measure seconds from writing a step's record to the drawn point in the open live page, for each step."""
    server, url = watch(folder)
    try:
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(url)
            while page.locator("#live").text_content() != "live":
                page.wait_for_timeout(10)
            page.locator("#training-loss").scroll_into_view_if_needed()
            found = []
            for step in range(1, repeat + 1):
                time.sleep(1.3 + 0.37 * (step % 3))  # not synchronous with the polling of the server
                points = page.locator("#training-loss").get_attribute("data-points")
                start = time.perf_counter()
                record = {"kind": "step", "time": time.time(), "stage": "continue", "step": 1000 + step}
                with (folder / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps({**record, "tokens": (1000 + step) * 10**6, "loss": 2.0}) + "\n")
                while page.locator("#training-loss").get_attribute("data-points") == points:
                    page.wait_for_timeout(10)
                found.append(time.perf_counter() - start)
            browser.close()
            return found
    finally:
        server.terminate()
        server.wait()


def watch(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Start a server of the live page; return it and its address."""
    server = subprocess.Popen(
        [sys.executable, "-m", "drpruning", "report", "--watch", str(folder), "--port", "0", "--no-open"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    return server, server.stdout.readline().strip()


def _status(url: str) -> str:
    with urllib.request.urlopen(url + "events?version=0") as stream:  # noqa: S310 - our own server
        for line in stream:
            if line.startswith(b"data: "):
                return str(json.loads(line[6:])["status"])
    return ""


def _print(visits: list[dict[str, float]]) -> None:
    middle = {key: statistics.median(each[key] for each in visits) for key in visits[0]}
    print(f"  first paint; all {middle['figures']:.0f} figures drawn  {middle['paint']:.0f}; {middle['drawn']:.0f} ms")
    print(f"  renderer process               {middle['renderer']:.0f} MB")


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.0f} MB"


if __name__ == "__main__":
    main()
