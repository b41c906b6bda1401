"""From noise to a picture: any scheduler of diffusers, each image from a seed of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler
from torch import Tensor

PREDICTIONS = ("epsilon", "sample", "v_prediction")
UNSEEDED = "DPMSolverSDEScheduler"
"""Draws its noise from no generator that it could be given."""
MISSING = "_backends"
"""What diffusers' stand-in for a class has that lacks a package."""


def noise_schedule(fields: dict[str, Any], where: str) -> Any:
    """Returns the schedule by which training adds noise, from the fields of a scheduler's configuration.

    Raises:
        ValueError: They make no schedule, or one that cannot be learned.
    """
    try:
        schedule = _made(DDPMScheduler, fields)
    except (NotImplementedError, TypeError) as error:
        raise ValueError(f"{where} makes no schedule: {error}") from error
    kind = schedule.config.prediction_type
    if kind not in PREDICTIONS:
        raise ValueError(f"{where}.prediction_type is {kind!r}; it is one of {', '.join(PREDICTIONS)}")
    if schedule.config.rescale_betas_zero_snr and kind == "epsilon":
        raise ValueError(
            f"{where}: with rescale_betas_zero_snr the last step is noise alone, of which nothing can be learned by "
            "predicting it; set prediction_type to v_prediction or sample"
        )
    return schedule


def sampler_of(name: str, fields: dict[str, Any]) -> Any:
    """Returns a fresh scheduler of diffusers for drawing; some keep a state over the steps of a picture.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in samplers():
        raise ValueError(f"sampler {name!r} is none of {', '.join(samplers())}")
    return _made(getattr(diffusers, name), fields)


def samplers() -> list[str]:
    """Returns the schedulers that can draw what a schedule of noise has trained and whose packages are installed."""
    names = {DDPMScheduler.__name__, *DDPMScheduler._compatibles} - {UNSEEDED}
    return sorted(name for name in names if not hasattr(getattr(diffusers, name, None), MISSING))


def scheduler_knows() -> set[str]:
    """Returns every field that one of them knows."""
    return {field for name in samplers() for field in inspect.signature(getattr(diffusers, name)).parameters}


def sample(
    predict: Callable[[Tensor, Tensor], Tensor],
    scheduler: Any,
    shape: tuple[int, int, int],
    steps: int,
    seeds: Sequence[int],
    device: torch.device,
) -> Tensor:
    """Returns latents (I, C, H, W), float32, one for each seed.

    Noise is drawn on the host by one generator an image, so an image depends neither on the others nor on the device.

    Args:
        predict: the network: noisy latents and a step in, its prediction out.
        scheduler: a fresh one of diffusers.
        shape: of one image's latents.
        steps: steps of the scheduler.
        seeds: one an image.
        device: where latents live.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    scheduler.set_timesteps(steps, device=device)
    drawn = [torch.randn(shape, generator=generator) for generator in generators]
    x_ICHW: Tensor = torch.stack(drawn).to(device) * scheduler.init_noise_sigma
    is_random = "generator" in inspect.signature(scheduler.step).parameters
    more: dict[str, Any] = {"generator": generators} if is_random else {}
    for step in scheduler.timesteps:
        predicted_ICHW = predict(scheduler.scale_model_input(x_ICHW, step), step)
        x_ICHW = scheduler.step(predicted_ICHW, step, x_ICHW, **more).prev_sample
    return x_ICHW


def _made(scheduler_class: Any, fields: dict[str, Any]) -> Any:
    """Returns a scheduler of what it knows of the fields of another."""
    known = inspect.signature(scheduler_class).parameters
    return scheduler_class(**{name: value for name, value in fields.items() if name in known})
