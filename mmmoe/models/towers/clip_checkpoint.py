"""Checkpoints of open_clip: their vision half, and a table of positions that becomes as large as the tower's."""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmmoe.models.position_tables import resized

TABLES = ("positional_embedding", "trunk.pos_embed")
"""Names of the table of positions: of open_clip's own transformers, and of timm's."""


def read_visual(path: Path, name: str, *, allow_pickle: bool) -> dict[str, Tensor]:
    """Returns the vision half of a CLIP checkpoint; see `read_checkpoint`."""
    state = read_checkpoint(path, name, allow_pickle=allow_pickle)
    visual = {key.removeprefix("visual."): tensor.float() for key, tensor in state.items() if key.startswith("visual.")}
    if not visual:
        raise ValueError(f"{path} has no tensor named visual.*; is it an open_clip checkpoint of {name}?")
    return visual


def read_checkpoint(
    path: Path, name: str, where: str = "tower.path", *, allow_pickle: bool = False
) -> dict[str, Tensor]:
    """Returns the tensors of a CLIP checkpoint: safetensors, or a plain state dict of torch.

    Args:
        path: of the file.
        name: of the architecture, for messages.
        where: what the path is called in messages.
        allow_pickle: whether a file other than safetensors may be read; even then it may hold tensors alone.

    Raises:
        ValueError: There is no such file, or it holds code or something else than tensors.
    """
    if not path.is_file():
        raise ValueError(
            f"{where} {path} does not exist; put an open_clip checkpoint of {name} there (nothing is downloaded)"
        )
    if path.suffix == ".safetensors":
        try:
            state = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{where} {path} is no safetensors file ({error}); copy it again") from error
    else:
        problem = pickle_problem(path, allow_pickle)
        if problem is not None:
            raise ValueError(f"{where} {problem}")
        if zipfile.is_zipfile(path) and any("/code/" in entry for entry in zipfile.ZipFile(path).namelist()):
            raise ValueError(
                f"{path} is a TorchScript archive, which would run code; save its state_dict() as .safetensors first"
            )
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
        except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{where} {path} holds no plain tensors ({reason}); save it as safetensors") from error
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}


def pickle_problem(path: Path, is_allowed: bool) -> str | None:
    """Returns why a checkpoint is not read, in words: it is a pickle and nobody has said that it may be one."""
    if is_allowed or path.suffix == ".safetensors":
        return None
    return f"{path} is a pickle, which can run code: save it as safetensors, or write `allow_pickle: true` beside it"


def fitted(state: Mapping[str, Tensor], visual: nn.Module, grid: tuple[int, int], path: Path) -> dict[str, Tensor]:
    """Returns a checkpoint's tensors as a network takes them, its table of positions interpolated if need be.

    Args:
        state: the vision half.
        visual: the network.
        grid: its rows and columns of patches.
        path: of the checkpoint, for messages.

    Raises:
        ValueError: The checkpoint is one of another network.
    """
    own, fit = visual.state_dict(), dict(state)
    for name in TABLES:
        if name in own and name in fit and own[name].shape != fit[name].shape:
            fit[name] = _interpolated(fit[name], own[name].shape, grid)
    wrong = sorted(
        set(own.keys() ^ fit.keys()) | {name for name in own.keys() & fit.keys() if own[name].shape != fit[name].shape}
    )
    if wrong:
        raise ValueError(
            f"{path} does not fit the declared architecture: {len(wrong)} tensors are missing, unknown or of another "
            f"shape, the first are {wrong[:5]}"
        )
    return fit


def _interpolated(table: Tensor, shape: torch.Size, grid: tuple[int, int]) -> Tensor:
    """Returns a table of positions, bicubically interpolated to another grid; those of class tokens stay.

    Without antialiasing and without aligned corners, as MoVA's `resize_image_embeddings` and the CLIP and DINOv2 of
    transformers; open_clip's own `resize_pos_embed` antialiases. A table that is no square grid is left as it is.
    """
    width, num_prefix = shape[-1], math.prod(shape[:-1]) - math.prod(grid)
    num_patches = math.prod(table.shape[:-1]) - num_prefix
    side = math.isqrt(max(0, num_patches))
    if table.shape[-1] != width or side * side != num_patches:
        return table
    return resized(table.reshape(-1, width), grid, num_prefix).reshape(shape)
