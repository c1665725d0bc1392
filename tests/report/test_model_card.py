"""The model card of a run has the run's numbers; publishing sends model, masks, recipe and card to the hub's API."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from drpruning.cli import main
from drpruning.errors import ConfigError, EndpointError
from drpruning.export.hub import publish
from drpruning.recipes import load_recipe
from drpruning.records import Evaluated, ModelMeasured
from drpruning.report.model_card import Origin, files_to_publish, model_card
from drpruning.run_folder import RunFolder
from tests.report.synthetic import BASE, DOMAINS, synthetic, write_run

BASE_MODEL = "someone/large"
CONFIG = {
    "model_type": "llama",
    "vocab_size": 1536,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Write a finished run with an exported model, and with intervals in its evaluations."""
    records = [
        replace(record, standard_errors=dict.fromkeys(DOMAINS, 0.01)) if isinstance(record, Evaluated) else record
        for record in synthetic()
    ]
    config = load_recipe("quickstart").to_dict()
    config["model"] = {"source": BASE_MODEL}
    config["pretrain"] = None
    folder = RunFolder(write_run(tmp_path / "run", records, yaml.safe_dump(config)))
    for path in (folder.export, folder.pruned):
        path.mkdir()
        (path / "config.json").write_text(json.dumps(CONFIG))
        (path / "model.safetensors").write_bytes(b"weights of " + path.name.encode())
    (folder.pruned / "masks.safetensors").write_bytes(b"masks")
    (folder.pruned / "pruning.json").write_text("{}")
    return folder


def front_matter(card: str) -> dict[str, Any]:
    body: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return body


def table(card: str, heading: str) -> list[list[str]]:
    """Return the cells of the rows of the first table below a heading."""
    lines = card.split(f"## {heading}\n")[1].split("\n## ", maxsplit=1)[0].splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]


def test_the_front_matter_names_library_base_licence_and_tags(run: RunFolder) -> None:
    config = load_recipe(str(run.recipe))
    card = model_card(run, Origin.find(config, licence="apache-2.0"))
    assert front_matter(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": BASE_MODEL,
        "license": "apache-2.0",
        "tags": ["drpruning", "pruning", "data-mixture"],
    }
    local = Origin.find(load_recipe(str(run.recipe), [f"model.source={run.pruned}"]))
    assert local == Origin(name=None, licence=None)
    (run.pruned / "README.md").write_text("---\nlicense: mit\n---\n")
    assert Origin.find(load_recipe(str(run.recipe), [f"model.source={run.pruned}"])).licence == "mit"


def test_the_tables_have_the_numbers_of_the_records(run: RunFolder) -> None:
    card = model_card(run, Origin(name=BASE_MODEL, licence=None))
    final = next(record for record in synthetic() if isinstance(record, ModelMeasured) and record.model == "recovered")
    losses = {row[0]: row for row in table(card, "Losses by domain")}
    assert losses["math"][1:4:2] == [f"{BASE['math']:.3f}", f"{final.losses['math']:.3f}"]
    last = [record for record in synthetic() if isinstance(record, Evaluated)][-1]
    assert last.excess_loss is not None
    low, high = (f"{last.excess_loss['math'] + sign * 1.959964 * 0.01:+.3f}" for sign in (-1, 1))
    assert losses["math"][-1].endswith(f"[{low}, {high}]")
    stages = {row[0]: row for row in table(card, "Training")}
    assert stages["continue"][1:3] == ["250", "512,000"]
    assert float(stages["continue"][3]) > 0
    mixture = {row[0]: row for row in table(card, "Data mixture")}
    assert mixture["domain"][2:] == [
        "prune 0",
        "prune 80",
        "continue 0",
        "continue 90",
        "continue 170",
        "continue 250",
    ]
    assert mixture["math"][-1] == f"{last.weights['math']:.1%}"
    shapes = {row[0]: row[-1] for row in table(card, "Shape")}
    assert shapes["this model"] == "947,000"


def test_a_run_without_a_finished_model_is_an_error(run: RunFolder) -> None:
    (run.export / "config.json").unlink()
    with pytest.raises(ConfigError, match="no finished model"):
        model_card(run, Origin(name=None, licence=None))


def test_an_edited_card_is_kept(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    card = run.export / "README.md"
    card.write_text("---\nlicense: mit\n---\nEdited")
    main(["export", "card", str(run.path)])
    assert "kept" in capsys.readouterr().out
    assert card.read_text().endswith("Edited")
    main(["export", "card", str(run.path), "--license", "other", "--force"])
    assert front_matter(card.read_text())["license"] == "other"


def test_nothing_is_published_without_a_licence(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "card", str(run.path), "--push-to-hub", "me/small"])
    assert "--force --license apache-2.0" in capsys.readouterr().err


# ---- a local server with the part of the hub's API that publishing uses


@dataclass
class Hub:
    """Requests that the server received.

    Attributes:
        created: Bodies of the requests that create a repository.
        cards: Cards that were sent for validation.
        files: Content of the committed files.
        stored: Content by SHA-256, of files sent as LFS objects.
        tokens: Values of the header Authorization.
        refuse: Status with which the creation of a repository is refused.
    """

    created: list[dict[str, Any]] = field(default_factory=list)
    cards: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)
    refuse: int | None = None
    address: str = ""

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """Return the answer to a POST, as the hub documents it."""
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return {"url": f"{self.address}/me/small", "name": "me/small"}
        if path == "/api/validate-yaml":
            self.cards.append(json.loads(body)["content"])
            return {"errors": [], "warnings": []}
        if path == "/api/models/me/small/preupload/main":
            modes = {True: "lfs", False: "regular"}
            names = [item["path"] for item in json.loads(body)["files"]]
            return {
                "files": [
                    {"path": name, "uploadMode": modes[name.endswith(".safetensors")], "shouldIgnore": False}
                    for name in names
                ]
            }
        if path == "/me/small.git/info/lfs/objects/batch":
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.address}/store/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            return {"transfer": "basic", "objects": objects}
        assert path == "/api/models/me/small/commit/main", path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                self.files[line["value"]["path"]] = self.stored[line["value"]["oid"]]
        return {"commitUrl": f"{self.address}/me/small/commit/0a", "commitOid": "0a", "hookOutput": "", "success": True}


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Serve a :class:`Hub` on this machine."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def reply(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def do_POST(self) -> None:
            body = self.body()
            state.tokens.add(self.headers.get("Authorization"))
            if state.refuse is not None:
                self.reply(state.refuse, {"error": "refused by the test"})
            else:
                self.reply(200, state.answer(self.path, body))

        def do_PUT(self) -> None:
            content = self.body()
            state.stored[hashlib.sha256(content).hexdigest()] = content
            self.reply(200, {})

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def test_publishing_commits_model_masks_recipe_and_card(run: RunFolder, hub: Hub, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_TOKEN": "hf_test",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",  # LFS, whose protocol the server speaks
    }
    words = ["export", "card", str(run.path), "--license", "apache-2.0", "--push-to-hub", "me/small", "--private"]
    done = subprocess.run(
        [sys.executable, "-m", "drpruning", *words, "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["commit"] == f"{hub.address}/me/small/commit/0a"
    (created,) = hub.created
    assert created["name"] == "small"
    assert created["organization"] == "me"
    assert created.get("private", created.get("visibility") == "private")
    assert set(hub.tokens) == {"Bearer hf_test", None} or hub.tokens == {"Bearer hf_test"}
    assert set(hub.files) == {
        "README.md", "config.json", "model.safetensors", "masks.safetensors", "pruning.json", "recipe.yaml",
    }  # fmt: skip
    assert hub.files == {name: path.read_bytes() for name, path in files_to_publish(run).items()}
    assert hub.files["model.safetensors"] == b"weights of export"
    (card,) = hub.cards
    assert hub.files["README.md"].decode() == card
    assert front_matter(card)["base_model"] == BASE_MODEL
    assert 'from_pretrained("me/small")' in card


def test_a_refusal_of_the_hub_is_an_error(run: RunFolder, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    hub.refuse = 403
    with pytest.raises(EndpointError, match="me/small") as caught:
        publish({"recipe.yaml": run.recipe}, "me/small")
    assert caught.value.next_step is not None
    assert "hf auth login" in caught.value.next_step
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        publish({}, "small")
