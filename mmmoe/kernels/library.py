"""Registers ops with torch: schema, implementation, shapes for torch.compile, gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_library: Any = torch.library.Library("mmmoe", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch leaves it unannotated


def register(
    schema: str,
    *,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    keep: Callable[..., None] | None = None,
) -> Any:
    """Defines `mmmoe::<schema>` and returns the op.

    Args:
        schema: Name, arguments and results as torch writes them.
        run: What runs on tensors of either kind of device; it asks `backend.has_kernels` for its kernels.
        fake: Returns empty results of the right shapes, for tracing.
        backward: Gradient of the inputs from that of the results; None where there is none: then asking for it is an
            error, where torch alone would give zeros.
        keep: Saves for `backward` what it needs: called with ctx, inputs and output.
    """
    name = schema.split("(", 1)[0]
    _library.define(schema)
    _library.impl(name, run, "CPU")
    _library.impl(name, run, "CUDA")
    torch.library.register_fake(f"mmmoe::{name}", fake, lib=_library)
    torch.library.register_autograd(f"mmmoe::{name}", backward or _refuse(name), setup_context=keep, lib=_library)
    return getattr(torch.ops.mmmoe, name)


def _refuse(name: str) -> Callable[..., Any]:
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(f"mmmoe::{name} has no gradient; gradients of gradients are not offered")

    return backward
