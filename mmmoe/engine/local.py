"""The engine in plain torch: replicated weights, summed gradients, float32 masters; the reference for the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from mmmoe.engine import groups
from mmmoe.engine.checkpoint import check_load
from mmmoe.engine.expert_groups import ExpertGroups, is_share, whole_shapes
from mmmoe.engine.precision import cast_inputs, cast_parameters, compute_dtype, engine_device, to_host
from mmmoe.engine.protocol import TrainingOutput
from mmmoe.engine.spec import EngineSpec, TrainingSpec

# Numbers sent in one all-reduce: 100 MB of float32, large enough to fill a link, small enough to copy.
BUCKET = 25_000_000


class LocalEngine:
    """Trains one replica a process; gradients are summed (never averaged) over micro-batches and processes."""

    def __init__(
        self,
        module: nn.Module,
        spec: EngineSpec,
        training: TrainingSpec,
        canonical: Callable[[str], str] = groups.same_name,
        experts: ExpertGroups | None = None,
    ) -> None:
        self._module = module
        self._experts = experts
        self._device = engine_device(spec)
        self._dtype = compute_dtype(spec)
        self._clip = training.optimizer.clip
        module.to(self._device)
        self._trainable = groups.trainable_parameters(module, canonical)
        self._masters = self._make_masters()
        self._gradients: list[Tensor | None] = [None] * len(self._masters)
        self._updates = 0
        self._hooks = [
            cast(Any, parameter).register_post_accumulate_grad_hook(self._collector(place))
            for place, (_, parameter) in enumerate(self._trainable)
        ]
        named_masters = [(name, master) for (name, _), master in zip(self._trainable, self._masters, strict=True)]
        self._adam = groups.adamw(groups.parameter_groups(named_masters, training.optimizer), training.optimizer)
        groups.start_moments(self._adam, self._masters, 0)

    @property
    def module(self) -> nn.Module:
        """The bare model."""
        return self._module

    @property
    def device(self) -> torch.device:
        """Where batches go."""
        return self._device

    def forward(self, inputs: Mapping[str, object]) -> TrainingOutput:
        """Runs the model."""
        return cast(TrainingOutput, self._module(**cast_inputs(inputs, self._dtype)))

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Adds gradients; after the step's last micro-batch they are summed over the processes."""
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        if is_last:
            self._sum_over_ranks()

    def step(self, rates: list[float]) -> float:
        """Clips, updates and clears; a norm that is not finite comes back without an update."""
        gradients = [self._gradient(place) for place in range(len(self._masters))]
        norm = self._norm(gradients)
        if bool(torch.isfinite(norm)):
            self._updates += 1
            if self._clip is not None:
                torch._foreach_mul_(gradients, torch.clamp(self._clip / (norm + 1e-6), max=1.0))
            groups.set_rates(self._adam, rates)
            for master, gradient in zip(self._masters, gradients, strict=True):
                master.grad = gradient
            self._adam.step()
            self._publish()
        self.discard()
        return float(norm)

    def discard(self) -> None:
        """Clears the gradients."""
        self._adam.zero_grad(set_to_none=True)
        self._gradients = [None] * len(self._masters)

    @property
    def updates(self) -> int:
        """Updates that weights and moments have had."""
        return self._updates

    def tensors(self) -> dict[str, Tensor]:
        """Returns the masters by canonical name, on the CPU."""
        return {name: self._whole(place, self._masters[place]) for place, (name, _) in enumerate(self._trainable)}

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Returns Adam's moments as `exp_avg.<name>` and `exp_avg_sq.<name>`, on the CPU."""
        return {
            f"{kind}.{name}": self._whole(place, self._adam.state[self._masters[place]][kind])
            for kind in ("exp_avg", "exp_avg_sq")
            for place, (name, _) in enumerate(self._trainable)
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], moments: Mapping[str, Tensor], updates: int) -> None:
        """Puts parameters and moments back; without moments Adam starts afresh."""
        check_load(whole_shapes(self._trainable, self._experts), tensors, moments)
        self._updates = updates if moments else 0
        groups.start_moments(self._adam, self._masters, self._updates)
        for place, ((name, _), master) in enumerate(zip(self._trainable, self._masters, strict=True)):
            master.copy_(self._own(place, tensors[name]))
            for kind in ("exp_avg", "exp_avg_sq"):
                if moments:
                    self._adam.state[master][kind].copy_(self._own(place, moments[f"{kind}.{name}"]))
        self._publish()

    def close(self) -> None:
        """Takes the engine's hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def _make_masters(self) -> list[Tensor]:
        """Brings the model to its format; in float32 a parameter is its own master."""
        if self._dtype == torch.float32:
            cast_parameters(self._module, torch.float32)
            return [parameter for _, parameter in self._trainable]
        masters = [parameter.detach().float().clone() for _, parameter in self._trainable]
        cast_parameters(self._module, self._dtype)
        return masters

    def _collector(self, place: int) -> Callable[[Tensor], None]:
        """Returns the hook that moves one parameter's gradient into its float32 sum.

        bf16 gradients added up in bf16 would lose a small micro-batch next to a large sum.
        """

        def collect(parameter: Tensor) -> None:
            held, new = self._gradients[place], parameter.grad
            assert new is not None
            self._gradients[place] = new.float() if held is None else held.add_(new)
            parameter.grad = None

        return collect

    def _gradient(self, place: int) -> Tensor:
        """Returns a parameter's summed gradient, zeros if no sample reached it."""
        held = self._gradients[place]
        if held is None:
            held = self._gradients[place] = torch.zeros_like(self._masters[place])
        return held

    def _is_share(self, place: int) -> bool:
        return self._experts is not None and is_share(self._trainable[place][1])

    def _whole(self, place: int, tensor: Tensor) -> Tensor:
        """Returns a master or moment on the CPU, with the experts of all processes."""
        return to_host(self._experts.gather(tensor) if self._experts and self._is_share(place) else tensor)

    def _own(self, place: int, tensor: Tensor) -> Tensor:
        """Returns this process's part of a tensor of a checkpoint."""
        return self._experts.cut(tensor) if self._experts and self._is_share(place) else tensor

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        """Returns the global norm of the summed gradients."""
        if self._experts is None:
            norm: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(one) for one in gradients]))
            return norm
        shares = [gradient for place, gradient in enumerate(gradients) if self._is_share(place)]
        shared = [gradient for place, gradient in enumerate(gradients) if not self._is_share(place)]
        return self._experts.norm(shared, shares)

    def _sum_over_ranks(self) -> None:
        if not torch_dist.is_initialized() or torch_dist.get_world_size() == 1:
            return
        shares = [place for place in range(len(self._masters)) if self._is_share(place)]
        shared = [place for place in range(len(self._masters)) if not self._is_share(place)]
        for places, group in ((shared, None), (shares, self._experts.data_group if self._experts else None)):
            bucket: list[Tensor] = []
            for number, place in enumerate(places, 1):
                bucket.append(self._gradient(place))
                if number == len(places) or sum(tensor.numel() for tensor in bucket) >= BUCKET:
                    _all_reduce(bucket, group)
                    bucket = []

    @torch.no_grad()
    def _publish(self) -> None:
        """Copies masters into the model where they are not the same tensors."""
        for (_, parameter), master in zip(self._trainable, self._masters, strict=True):
            if parameter is not master:
                parameter.copy_(master)


def _all_reduce(tensors: list[Tensor], group: Any) -> None:
    """Sums tensors over the processes of a group (None: all) in place, in one message."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    torch_dist.all_reduce(flat, group=group)
    for tensor, summed in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))
