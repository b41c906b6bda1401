"""What DeepSpeed is told before it starts: every workaround of its start-up stands here."""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import suppress
from importlib import import_module
from typing import Any
from unittest.mock import patch

import deepspeed.ops
import torch
import torch.distributed as torch_dist

from mmmoe import dist, env


def prepare_process(device: torch.device) -> None:
    """Makes DeepSpeed start quietly, without a launcher and without compiling anything.

    Raises:
        ValueError: The engine is to use the CPU where DeepSpeed would take a GPU.
    """
    if device.type == "cpu" and torch.cuda.is_available():
        raise ValueError(
            "engine.device: cpu with engine.kind: deepspeed needs a machine that shows no GPU. Use kind: local"
        )
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # It still calls torch collectives by names that torch renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    # On CPUs it would compile a shared-memory all-reduce (minutes, and a compiler on every node) that only its
    # inference calls. It looks in this table before building and says of it that edits persist.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _load_muon()
    # Its engine reads this variable even where it was not launched (engine._configure_with_arguments).
    os.environ.setdefault("LOCAL_RANK", str(env.local_rank()))
    if not torch_dist.is_initialized():
        if env.world_size() > 1:
            dist.start()
        else:
            backend = "nccl" if device.type == "cuda" else "gloo"
            store = torch_dist.HashStore()  # type: ignore[attr-defined]  # torch's stubs leave it out
            torch_dist.init_process_group(backend, store=store, rank=0, world_size=1)


def _load_muon() -> None:
    """Imports DeepSpeed's Muon as plain functions.

    ZeRO looks whether an optimiser is Muon, and importing that (0.19.8, zero/muon/original_muon.py) has torch.compile
    decorate its functions: loading the compiler takes two seconds of every start, for an optimiser we do not offer.
    """

    def plain(function: Any = None, **_: Any) -> Any:
        return function or plain

    with patch.object(torch, "compile", plain), suppress(ImportError):
        import_module("deepspeed.runtime.zero.muon.original_muon")
