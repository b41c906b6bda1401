"""From noise to a picture: any scheduler of diffusers, each image from a seed of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import diffusers  # its classes are loaded at their first use: most runs draw nothing
import torch
from torch import Tensor

PREDICTIONS = ("epsilon", "sample", "v_prediction")
UNSEEDED = "DPMSolverSDEScheduler"
"""Draws its noise from no generator that it could be given."""
MISSING = "_backends"
"""What diffusers' stand-in for a class has that lacks a package."""
SCHEDULE = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "rescale_betas_zero_snr",
)  # fmt: skip
"""Fields that say how much noise a step has and what is predicted: a sampler without one would draw by another rule."""
TRUTH, TOLERANCE, TRIAL_STEPS = 0.3, 0.05, 10
"""A sampler is tried on latents of 0.3, in ten steps, with a network that is never wrong."""


def noise_schedule(fields: dict[str, Any], where: str) -> Any:
    """Returns the schedule by which training adds noise, from the fields of a scheduler's configuration.

    Raises:
        ValueError: They make no schedule, or one that cannot be learned.
    """
    try:
        schedule = _made(diffusers.DDPMScheduler, fields)
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
        ValueError: There is none of that name, or it does not know what the schedule of noise is made of.
    """
    if name not in installed():
        raise ValueError(f"sampler {name!r} is none of {', '.join(installed())}")
    scheduler_class = getattr(diffusers, name)
    trained = _made(diffusers.DDPMScheduler, fields).config
    lost = [key for key in SCHEDULE if trained[key] and key not in inspect.signature(scheduler_class).parameters]
    if lost:
        raise ValueError(f"sampler {name!r} knows no {', '.join(lost)}, by which the noise is added in training")
    # All of them, declared or not: the schedulers' own values differ.
    return _made(scheduler_class, {**{key: trained[key] for key in SCHEDULE}, **fields})


def check_sampler(name: str, fields: dict[str, Any]) -> None:
    """Refuses a sampler that does not draw what is trained.

    Raises:
        ValueError: It cannot be made, fails on the way, or does not come to what the network says.
    """
    sampler_of(name, fields)
    problem = _problem(name, fields)
    if problem is not None:
        raise ValueError(f"sampler {name!r} {problem}; take one of {', '.join(samplers(fields))}")


def samplers(fields: dict[str, Any]) -> list[str]:
    """Returns the schedulers that draw what is trained by a schedule of noise."""
    return [name for name in installed() if _problem(name, fields) is None]


def installed() -> list[str]:
    """Returns the schedulers that are said to fit a schedule of noise and whose packages are installed."""
    names = {diffusers.DDPMScheduler.__name__, *diffusers.DDPMScheduler._compatibles} - {UNSEEDED}
    return sorted(name for name in names if not hasattr(getattr(diffusers, name, None), MISSING))


def scheduler_knows() -> set[str]:
    """Returns every field that one of them knows."""
    return {field for name in installed() for field in inspect.signature(getattr(diffusers, name)).parameters}


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


def _problem(name: str, fields: dict[str, Any]) -> str | None:
    """Returns what is wrong with a sampler, None if nothing is."""
    try:
        drawn = trial(name, fields)
    except Exception as error:  # whatever it raises, it cannot draw
        return f"cannot draw with these fields ({error})"
    distance = float((drawn - TRUTH).abs().mean())
    # Not the other way round, for nan.
    if distance <= TOLERANCE:
        return None
    return f"is {distance:.3g} away from the picture that every prediction names"


def trial(name: str, fields: dict[str, Any]) -> Tensor:
    """Returns what a sampler draws if the network always knows that the picture is TRUTH throughout."""
    # Models are built on the meta device and under a seed: neither may notice.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        scheduler, schedule = sampler_of(name, fields), _made(diffusers.DDPMScheduler, fields)
        kept_T, kind = schedule.alphas_cumprod, schedule.config.prediction_type

        def predict(noisy_ICHW: Tensor, step: Tensor) -> Tensor:
            # Steps of some samplers lie between those of training.
            low, share = int(float(step)), float(step) % 1.0
            kept = torch.lerp(kept_T[low], kept_T[min(low + 1, len(kept_T) - 1)], share)
            clean_ICHW = torch.full_like(noisy_ICHW, TRUTH)
            noise_ICHW = (noisy_ICHW - kept.sqrt() * clean_ICHW) / (1 - kept).sqrt()
            if kind == "v_prediction":
                return kept.sqrt() * noise_ICHW - (1 - kept).sqrt() * clean_ICHW
            return noise_ICHW if kind == "epsilon" else clean_ICHW

        return sample(predict, scheduler, (3, 16, 16), min(TRIAL_STEPS, len(kept_T)), [0], torch.device("cpu"))


def _made(scheduler_class: Any, fields: dict[str, Any]) -> Any:
    """Returns a scheduler of what it knows of the fields of another."""
    known = inspect.signature(scheduler_class).parameters
    return scheduler_class(**{name: value for name, value in fields.items() if name in known})
