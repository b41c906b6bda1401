"""Nothing in the code runs what a file says: no pickle, no eval, no shell, no unpacking, no remote code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path
    for folder in ("mmmoe", "data", "kernels", ".ci")
    for path in (ROOT / folder).rglob("*.py")
    if "local" not in path.parts
)
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "xmlrpc", "telnetlib", "pty"}
CALLS = {
    "eval", "exec", "compile", "os.system", "os.popen", "os.execv", "torch.hub.load", "torch.jit.load", "yaml.load",
    "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "unpack_archive", "load_state_dict_from_url", "getoutput",
}  # fmt: skip
METHODS = {
    "extract",
    "extractall",
    "unpack_archive",
    "mktemp",
    "load_state_dict_from_url",
    "add_safe_globals",
    "getoutput",
}
PICKLE_ERRORS = {"mmmoe/models/towers/clip_checkpoint.py"}
"""Imports pickle for the name of the error that torch's reader of plain tensors raises."""


def faults(text: str) -> Iterator[str]:
    """Yields what code does that could run what a file says, with its line."""
    for node in ast.walk(ast.parse(text)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            yield from (f"{line}: import {a.name}" for a in node.names if a.name.partition(".")[0] in MODULES)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            yield f"{line}: from {node.module} import"
        if isinstance(node, ast.Call):
            yield from (f"{line}: {fault}" for fault in _call_faults(node))


def _call_faults(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    last = name.rpartition(".")[2]
    given = {keyword.arg: keyword.value for keyword in node.keywords}

    def is_true(key: str) -> bool:
        value = given.get(key)
        return value is not None and not (isinstance(value, ast.Constant) and value.value is False)

    if name in CALLS or ("." in name and last in METHODS):
        yield f"calls {name}"
    yield from (f"{name} with {key}" for key in ("shell", "trust_remote_code") if is_true(key))
    if last == "load" and "allow_pickle" in given and is_true("allow_pickle"):
        yield f"{name} with allow_pickle"
    if name in ("np.load", "numpy.load") and "allow_pickle" not in given:
        yield f"{name} without allow_pickle=False"
    if name == "torch.load" and not is_true("weights_only"):
        yield "torch.load without weights_only=True"
    if last == "from_pretrained":
        if not is_true("local_files_only"):
            yield f"{name} without local_files_only=True"
        if ("Model" in name or "model_class" in name) and not (is_true("use_safetensors") or "gguf_file" in given):
            yield f"{name} without use_safetensors=True"
    if name.startswith("subprocess.") and node.args and isinstance(node.args[0], ast.Constant | ast.JoinedStr):
        yield f"{name} with a text and not a list"


def test_no_file_can_make_code_run():
    found = {str(path.relative_to(ROOT)): list(faults(path.read_text())) for path in SOURCES}
    told = [
        f"{path}:{fault}"
        for path, every in found.items()
        for fault in every
        if not (path in PICKLE_ERRORS and fault.endswith("import pickle"))
    ]
    assert told == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "x = eval(text)",
        "exec(text)",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
        "yaml.load(text, Loader=L)",
        "tar.extractall(p)",
        "os.system('ls')",
        "subprocess.run('ls', check=True)",
        "subprocess.run(f'ls {x}')",
        "subprocess.run(c, shell=True)",
        "AutoModel.from_pretrained(p, local_files_only=True)",
        "AutoTokenizer.from_pretrained(p)",
        "AutoTokenizer.from_pretrained(p, local_files_only=True, trust_remote_code=flag)",
        "torch.hub.load(r, m)",
    ],
)
def test_the_rule_sees_what_it_is_for(text):
    assert list(faults(text))


@pytest.mark.parametrize("text", ["model.eval()", "re.compile(x)", "torch.load(p, weights_only=True)", "json.load(f)"])
def test_the_rule_leaves_the_rest(text):
    assert list(faults(text)) == []
