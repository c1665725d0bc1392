"""No statement of the package can execute data: its syntax trees are searched, and each exception has a reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import drpruning

PACKAGE = Path(drpruning.__file__).parent

ALLOWED = {
    ("prepare/pipeline/process_pool.py", "import pickle"): "pipes between this process and its own workers",
    ("prepare/pipeline/process_pool.py", "subprocess.Popen"): "this interpreter with a constant program",
    ("hf/models.py", "import pickle"): "the error that the restricted reader of transformers raises",
    ("cli/live_page.py", "subprocess.Popen"): "this program, with arguments as a list",
    ("comparison/scheduler.py", "import multiprocessing"): "pipes between this process and its own children",
    ("comparison/scheduler.py", "import multiprocessing.context"): "types",
    ("comparison/scheduler.py", "import multiprocessing.process"): "types",
    ("train/distributed/ranks.py", "broadcast_object_list"): "pickles between the ranks of one run",
    ("train/distributed/ranks.py", "all_gather_object"): "pickles between the ranks of one run",
    ("__init__.py", "importlib.import_module of an expression"): "a constant table of this package's modules",
    ("prepare/__init__.py", "importlib.import_module of an expression"): "a constant table of this package's modules",
    ("cli/__init__.py", "importlib.import_module of an expression"): "a constant table of commands",
    ("prepare/tokenize/tokenizer.py", "importlib.import_module of an expression"): "a constant tuple in the loop",
    ("inputs.py", "yaml.load"): "a subclass of SafeLoader; tags become None",
    ("evaluation/tasks.py", "lm_eval.tasks.TaskManager"): "tasks in a folder are code, see docs/evaluate.md",
    ("report/page/sections.py", "import jinja2"): "templates of this package, with data as arguments",
}
"""By file and finding."""

EXECUTING_MODULES = {
    "pickle", "_pickle", "dill", "cloudpickle", "joblib", "jsonpickle", "marshal", "shelve", "runpy", "code", "codeop",
    "jinja2", "mako", "multiprocessing", "ctypes", "cffi", "pty", "numexpr", "tensorflow", "keras",
}  # fmt: skip
BUILTINS = {"eval", "exec", "compile", "__import__", "input", "breakpoint"}
FUNCTIONS = {
    "os.system", "os.popen", "os.execv", "os.execve", "os.execvp", "os.spawnv", "os.spawnl", "os.posix_spawn",
    "subprocess.run", "subprocess.call", "subprocess.check_call", "subprocess.check_output", "subprocess.Popen",
    "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell",
    "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "torch.ops.load_library",
    "torch.classes.load_library", "torch.utils.cpp_extension.load", "torch.utils.cpp_extension.load_inline",
    "torch.export.load", "torch.distributed.checkpoint.load", "torch.distributed.checkpoint.FileSystemReader",
    "importlib.util.spec_from_file_location", "importlib.machinery.SourceFileLoader", "pkgutil.resolve_name",
    "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all", "sys.path.append",
    "sys.path.insert", "lm_eval.tasks.TaskManager", "datasets.load_dataset", "transformers.pipeline",
    "string.Template", "numpy.fromregex",
}  # fmt: skip
METHODS = {"read_pickle", "to_pickle", "broadcast_object_list", "all_gather_object", "gather_object", "exec_module"}
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader", "yaml.BaseLoader"}
UNSAFE_LOADERS = {"yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader", "yaml.CLoader"}
FILE_READERS = {"torch.distributed.checkpoint." + name for name in ("state_dict_loader", "filesystem", "api")}
"""Modules of DCP, whose metadata is a pickle."""
TAKES_NO_REMOTE_CODE = {"transformers.GenerationConfig.from_pretrained"}


def names_of(tree: ast.Module) -> dict[str, str]:
    """Return the full name of each imported name."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({(item.asname or item.name.partition(".")[0]): (
                item.name if item.asname else item.name.partition(".")[0]) for item in node.names})  # fmt: skip
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.update({item.asname or item.name: f"{node.module}.{item.name}" for item in node.names})
    return names


def full_name(node: ast.expr, names: dict[str, str]) -> str:
    """Return the dotted name of an expression; empty parts where it has none."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{full_name(node.value, names)}.{node.attr}"
    return ""


def constant(call: ast.Call, keyword: str) -> object:
    """Return the constant value of a keyword argument; the call itself where it is another expression."""
    value = next((item.value for item in call.keywords if item.arg == keyword), None)
    return value.value if isinstance(value, ast.Constant) else None if value is None else call


def findings(source: str) -> Iterator[str]:
    """Yield each way in which a file could execute data."""
    tree = ast.parse(source)
    names = names_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported = [item.name for item in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for module in imported:
                if module.partition(".")[0] in EXECUTING_MODULES or module in FILE_READERS:
                    yield f"import {module}"
        elif isinstance(node, ast.ClassDef):
            for base in node.bases:
                if full_name(base, names) in UNSAFE_LOADERS:
                    yield f"class of {full_name(base, names)}"
        elif isinstance(node, ast.Call):
            yield from findings_of_call(node, full_name(node.func, names))


def findings_of_call(call: ast.Call, name: str) -> Iterator[str]:
    """Yield each way in which a call could execute data; ``name`` is the function's full name."""
    last = name.rpartition(".")[2]
    if name in BUILTINS or name in FUNCTIONS:
        yield name
    if last in METHODS:
        yield last
    if name in {"importlib.import_module", "builtins.__import__"} and not (
        call.args and isinstance(call.args[0], ast.Constant)
    ):
        yield f"{name} of an expression"
    if name == "torch.load" and constant(call, "weights_only") is not True:
        yield "torch.load without weights_only=True"
    if name in {"yaml.load", "yaml.load_all"} and not (
        {full_name(item.value, {"yaml": "yaml"}) for item in call.keywords if item.arg == "Loader"} & SAFE_LOADERS
    ):
        yield name
    if constant(call, "allow_pickle") not in (None, False):
        yield f"allow_pickle in {name}"
    if constant(call, "shell") not in (None, False):
        yield f"shell in {name}"
    if constant(call, "weights_only") not in (None, True):
        yield f"weights_only in {name}"
    takes = (last in {"from_pretrained", "from_config"} and ".Auto" in f".{name}") or last in {"HFLM", "load_dataset"}
    if constant(call, "trust_remote_code") not in (None, False):
        yield f"trust_remote_code in {name}"
    elif takes and constant(call, "trust_remote_code") is not False:
        yield f"{name} without trust_remote_code=False"
    elif last == "from_pretrained" and not takes and name not in TAKES_NO_REMOTE_CODE:
        yield f"{name}, which may take trust_remote_code"


def test_each_way_to_execute_data_has_a_reason() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), finding)
        for path in sorted(PACKAGE.rglob("*.py"))
        for finding in findings(path.read_text(encoding="utf-8"))
    }
    assert sorted(found - ALLOWED.keys()) == []
    assert sorted(ALLOWED.keys() - found) == [], "exceptions that are no longer needed"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads as f",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import numpy as np\nnp.load(f, allow_pickle=flag)",
        "import torch\ntorch.load(f)",
        "from torch import load\nload(f, weights_only=False)",
        "import torch as t\nt.load(f, weights_only=flag)",
        "import yaml\nyaml.load(f)",
        "import yaml\nyaml.load(f, Loader=yaml.Loader)",
        "from yaml import unsafe_load\nunsafe_load(f)",
        "from yaml import Loader\nclass A(Loader): pass",
        "eval(x)",
        "exec(x)",
        "compile(x, '', 'exec')",
        "input()",
        "import subprocess as s\ns.run(x)",
        "run(x, shell=True)",
        "import os\nos.system(x)",
        "import importlib\nimportlib.import_module(x)",
        "from importlib import import_module as i\ni(x)",
        "import importlib.util\nimportlib.util.spec_from_file_location(x, y)",
        "from transformers import AutoConfig\nAutoConfig.from_pretrained(x)",
        "from transformers import AutoModelForCausalLM as M\nM.from_config(x)",
        "import transformers\ntransformers.AutoTokenizer.from_pretrained(x, trust_remote_code=flag)",
        "from transformers import LlamaForCausalLM\nLlamaForCausalLM.from_pretrained(x)",
        "from lm_eval.models.huggingface import HFLM\nHFLM(pretrained=x)",
        "from torch.distributed.checkpoint.state_dict_loader import load",
        "import joblib",
        "frame.read_pickle(x)",
    ],
)
def test_the_search_finds_each_kind(source: str) -> None:
    assert list(findings(source)) != []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(f, weights_only=True)",
        "import yaml\nyaml.load(f, Loader=yaml.SafeLoader)",
        "import yaml\nyaml.safe_load(f)",
        "import re\nre.compile(x)",
        "model.eval()\nblock.compile()",
        "import importlib\nimportlib.import_module('torch')",
        "from transformers import AutoConfig\nAutoConfig.from_pretrained(x, trust_remote_code=False)",
        "import numpy as np\nnp.load(f)",
    ],
)
def test_the_search_accepts_safe_forms(source: str) -> None:
    assert list(findings(source)) == []
