"""Golden cases: found by listing a folder, so that cases added to it are tested without touching a test."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class GoldenCase:
    """One recorded run of an official module: its tensors by name and the JSON beside them."""

    name: str
    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        return self.meta["config"]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Returns the tensors whose name starts with `prefix.`, without it."""
        dotted = f"{prefix}."
        return {name.removeprefix(dotted): t for name, t in self.tensors.items() if name.startswith(dotted)}

    def check(self, name: str, value: Tensor | None) -> None:
        """Asserts that a value is the recorded one, within the case's own tolerance; integers must be equal."""
        want = self.tensors[name]
        assert value is not None, f"{name}: nothing came out"
        if not want.is_floating_point():
            assert torch.equal(value.to(want.dtype), want), f"{name} differs"
            return
        tolerance = self.meta["tolerance"]
        kind = "grad_atol" if name.startswith("grad_") else "output_atol"
        whole = tolerance.get(kind, tolerance["output_atol"])  # `dispatch` gives one for both
        atol = tolerance.get("atol", {}).get(name, whole)
        torch.testing.assert_close(
            value, want, atol=atol, rtol=tolerance["rtol"], msg=lambda text: f"{self.name} {name}: {text}"
        )


def golden_folder(config: pytest.Config) -> Path:
    """Returns the folder of golden groups: ours, or the one given by --golden."""
    return Path(config.getoption("--golden") or HERE)


def golden_names(config: pytest.Config, pattern: str) -> list[str]:
    """Returns the cases `group/name` whose JSON matches a glob under the golden folder."""
    folder = golden_folder(config)
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.glob(f"{pattern}.json"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is not None and "case" in metafunc.fixturenames:
        names = golden_names(metafunc.config, marker.args[0])
        assert names or metafunc.config.getoption("--golden"), f"no golden case matches {marker.args[0]}"
        metafunc.parametrize("case", names, indirect=True)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> GoldenCase:
    """The golden case that the test's `golden` marker chose."""
    folder = golden_folder(request.config)
    tensors = folder / f"{request.param}.safetensors"
    meta = json.loads((folder / f"{request.param}.json").read_text())
    return GoldenCase(request.param, load_file(tensors) if tensors.exists() else {}, meta)


@pytest.fixture
def lines(request: pytest.FixtureRequest, case: GoldenCase) -> list[dict[str, Any]]:
    """The text cases beside the golden case's JSON."""
    text = (golden_folder(request.config) / f"{case.name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
