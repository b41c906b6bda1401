"""Any network in an ONNX file, carried out by onnxruntime: experts that no maintained library has, such as Co-DETR."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmmoe.models.towers.onnx_weights import onnx_weights
from mmmoe.models.towers.spec import OnnxTowerSpec
from mmmoe.models.towers.tower import ImageTower, file_digest
from mmmoe.paths import resolve

RUNTIME = "onnxruntime"
DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}


class OnnxTower(ImageTower):
    """The cells of one output map (N, C, H, W), in reading order.

    It has no torch parameter, so it never trains and `to` does not move it: it runs where its pixels are, on CUDA if
    onnxruntime-gpu is installed and on the CPU if not. Pixels and features go through the host's memory either way.
    """

    def __init__(self, spec: OnnxTowerSpec, *, meta: bool = False) -> None:
        super().__init__()
        if importlib.util.find_spec(RUNTIME) is None:
            raise ValueError("the onnx tower needs the package onnxruntime: pip install 'mmmoe[onnx]'")
        self.path, self.output, self.order = resolve(spec.path), spec.output, spec.order
        self.image_size, self.channels = spec.image_size, spec.channels
        self.grid, self.num_tokens = spec.grid, spec.grid[0] * spec.grid[1]
        self.mean, self.std = spec.mean, spec.std
        self.sessions: dict[str, Any] = {}
        weights = "none"
        if self.path.is_file():
            found = onnx_weights(self.path)
            self.num_constants = found.count
            weights = weights if meta else _digest(found.files)
        if not meta:
            self._check(self._session("cpu"))
        self.key = f"onnx-{weights}-{spec.output}-{spec.order}-{spec.image_size}px-{self.colours}"
        self.freeze()

    def forward(self, pixels_ICHW: Tensor) -> Tensor:
        """Returns features (I, P, C), float32."""
        session = self._session(pixels_ICHW.device.type)
        taken = session.get_inputs()[0]
        if self.order == "bgr":
            pixels_ICHW = pixels_ICHW.flip(1)
        values_ICHW = pixels_ICHW.detach().to("cpu", DTYPES[taken.type]).contiguous()
        size = 1 if taken.shape[0] == 1 else len(values_ICHW)
        parts = (values_ICHW[start : start + size].numpy() for start in range(0, len(values_ICHW), size))
        maps = [torch.from_numpy(session.run([self.output], {taken.name: part_ICHW})[0]) for part_ICHW in parts]
        features_ICHW = torch.cat(maps).to(pixels_ICHW.device, torch.float32)
        self._check_map(tuple(features_ICHW.shape))
        return features_ICHW.flatten(2).transpose(1, 2)

    def _session(self, device: str) -> Any:
        """Returns the network on a kind of device, where it stays."""
        if device not in self.sessions:
            if not self.path.is_file():
                raise ValueError(f"tower.path {self.path} does not exist; put the ONNX file there")
            runtime: Any = importlib.import_module(RUNTIME)
            options = runtime.SessionOptions()
            # By itself it would start a thread for every core in each process.
            options.intra_op_num_threads = torch.get_num_threads()
            there = runtime.get_available_providers()
            providers = [name for name in PROVIDERS.get(device, PROVIDERS["cpu"]) if name in there]
            try:
                self.sessions[device] = runtime.InferenceSession(str(self.path), options, providers=providers)
            except Exception as error:
                raise ValueError(f"onnxruntime cannot load {self.path}: {error}") from error
        return self.sessions[device]

    def _check(self, session: Any) -> None:
        """Refuses a file whose inputs and outputs are not as declared."""
        inputs, outputs = session.get_inputs(), {output.name: output.shape for output in session.get_outputs()}
        want = (3, self.image_size, self.image_size)
        if len(inputs) != 1 or inputs[0].type not in DTYPES or not _agrees(inputs[0].shape[1:], want):
            found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
            raise ValueError(f"{self.path} takes {found}; the tower gives one float input (N, C, H, W) with {want}")
        if isinstance(inputs[0].shape[0], int) and inputs[0].shape[0] != 1:
            raise ValueError(f"{self.path} takes {inputs[0].shape[0]} images at a time; export it with a free batch")
        if self.output not in outputs:
            raise ValueError(f"{self.path} has no output {self.output!r}; tower.output is one of {sorted(outputs)}")
        self._check_map(tuple(outputs[self.output]))

    def _check_map(self, shape: tuple[Any, ...]) -> None:
        """Compares a map's shape, where the file or the network states it, with the declared one."""
        declared = (self.channels, *self.grid)
        if not _agrees(shape[1:], declared):
            raise ValueError(
                f"output {self.output!r} of {self.path} is {list(shape)}, but channels and grid declare (N, C, H, W) "
                f"with {declared}; correct the tower's spec"
            )


def _agrees(found: Sequence[Any], want: tuple[int, ...]) -> bool:
    """Compares a shape of a file, in which some sizes are names or unknown, with the declared one."""
    return len(found) == len(want) and all(
        not isinstance(size, int) or size == declared for size, declared in zip(found, want, strict=True)
    )


def _digest(files: tuple[Path, ...]) -> str:
    """Returns the digest of the network's files, in one."""
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"{files[0]} keeps weights in files that are missing: {', '.join(missing)}")
    digests = [file_digest(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]
