"""DeepSpeed's JSON, made from the engine's and the training's declarations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmmoe.engine.spec import EngineSpec, TrainingSpec

# DeepSpeed sets aside whole buckets: its default of 5e8 numbers would be 2 GB a process before the first step.
LARGEST_BUCKET = 49_152_000


def deepspeed_config(spec: EngineSpec, training: TrainingSpec, world: int, trainable: int) -> dict[str, Any]:
    """Returns the configuration, with the keys of `engine.deepspeed` added.

    Args:
        spec: The engine's declaration.
        training: The stage's training.
        world: Number of processes.
        trainable: Numbers in all trainable parameters.

    Raises:
        ValueError: `engine.deepspeed` names a key that is set from the other fields.
    """
    # Rounded up to a multiple of 1024: DeepSpeed wants buckets aligned.
    bucket = min(LARGEST_BUCKET, (trainable // 1024 + 1) * 1024)
    zero: dict[str, Any] = {"stage": spec.zero}
    if spec.zero > 0:
        zero |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": training.micro_batch,
        "gradient_accumulation_steps": math.ceil(training.batch / (training.micro_batch * world)),
        # Where it steps the bare AdamW its norm is an average over processes, wrong with experts: the engine clips.
        "gradient_clipping": 0.0 if _is_plain(spec) else training.optimizer.clip or 0.0,
        "zero_optimization": zero,
        # Both accept torch's AdamW; its own CPU Adam would be compiled at start-up and rounds differently.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    if spec.precision == "bf16":
        # Without its check a gradient that is not finite would be stepped with.
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        # Gradients of micro-batches and ranks are added up in float32, except that ZeRO 0 only knows bf16.
        config["communication_data_type"] = "fp32"
        config["data_types"] = {"grad_accum_dtype": "bf16" if spec.zero == 0 else "fp32"}
    return _merge(config, spec.deepspeed, "")


def _is_plain(spec: EngineSpec) -> bool:
    return spec.zero == 0 and spec.precision == "fp32"


def _merge(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Returns both; sections are merged, sizes may be overruled, a key that other fields decide is refused."""
    merged = dict(ours)
    for key, value in theirs.items():
        if key not in ours or key in ("reduce_bucket_size", "allgather_bucket_size"):
            merged[key] = value
        elif isinstance(ours[key], Mapping) and isinstance(value, Mapping):
            merged[key] = _merge(ours[key], value, f"{path}{key}.")
        else:
            raise ValueError(
                f"engine.deepspeed sets '{path}{key}' to {value!r}, which mmmoe sets itself ({ours[key]!r}): "
                "use the engine's and the training's own fields"
            )
    return merged
