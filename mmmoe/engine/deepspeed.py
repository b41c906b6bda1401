"""The engine on DeepSpeed: ZeRO 0 to 3 with torch's AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import deepspeed
import torch
import torch.distributed as torch_dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn
from torch.nn import functional

from mmmoe.engine import groups
from mmmoe.engine.checkpoint import check_load
from mmmoe.engine.deepspeed_config import deepspeed_config
from mmmoe.engine.deepspeed_experts import mark, shown_as_moe, split_groups
from mmmoe.engine.deepspeed_start import prepare_process
from mmmoe.engine.expert_groups import ExpertGroups, is_share, whole_shapes
from mmmoe.engine.outputs import join, split
from mmmoe.engine.precision import cast_inputs, cast_parameters, compute_dtype, engine_device, to_host
from mmmoe.engine.protocol import TrainingOutput
from mmmoe.engine.skippable import hide_skippable, show_hidden
from mmmoe.engine.spec import EngineSpec, TrainingSpec

MOMENTS = ("exp_avg", "exp_avg_sq")


class DeepSpeedEngine:
    """Trains under DeepSpeed; gradients are summed over micro-batches and processes, as in LocalEngine."""

    def __init__(
        self,
        module: nn.Module,
        spec: EngineSpec,
        training: TrainingSpec,
        canonical: Callable[[str], str] = groups.same_name,
        experts: ExpertGroups | None = None,
    ) -> None:
        self._module, self._spec, self._experts = module, spec, experts
        self._clip = training.optimizer.clip
        self._dtype = compute_dtype(spec)
        self._device = engine_device(spec)
        prepare_process(self._device)
        self._world = torch_dist.get_world_size()
        self._trainable = groups.trainable_parameters(module, canonical)
        self._shapes = whole_shapes(self._trainable, experts)
        # DeepSpeed makes its masters from weights already rounded to bf16: keep the exact ones.
        exact = {name: to_host(parameter) for name, parameter in self._trainable} if spec.precision == "bf16" else {}
        cast_parameters(module, self._dtype)
        param_groups = groups.parameter_groups(self._trainable, training.optimizer)
        if experts is not None:
            mark(module, experts.size)
            param_groups = split_groups(param_groups, experts.size)
        self._adam = groups.adamw(param_groups, training.optimizer)
        numel = sum(parameter.numel() for _, parameter in self._trainable)
        self._form: Any = None
        self._updates = 0
        self._is_forward = False
        self._flattening = module.register_forward_hook(self._flatten)
        self._hidden = hide_skippable(module, self._device) if spec.zero == 3 else []
        has_trained_shares = any(is_share(parameter) for _, parameter in self._trainable)
        with shown_as_moe(module, has_trained_shares):
            self._engine: Any = deepspeed.initialize(
                model=module,
                optimizer=self._adam,
                config=deepspeed_config(spec, training, self._world, numel),
            )[0]
        self._start_moments(0)
        if exact:
            self._write(exact, {}, is_whole=False)

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
        self._is_forward = True
        try:
            tensors = self._engine(**cast_inputs(inputs, self._dtype))
        finally:
            self._is_forward = False
        return cast(TrainingOutput, join(self._form, tensors))

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Adds gradients; DeepSpeed reduces them after the last micro-batch (ZeRO 2 and 3: after each)."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed averages over ranks; shares are to be summed. Its division by the number of micro-batches is off.
        self._engine.backward(loss * self._world, scale_wrt_gas=False)

    def step(self, rates: list[float]) -> float:
        """Clips, updates and clears; a norm that is not finite comes back without an update."""
        groups.set_rates(self._adam, rates)
        norm = self._plain_norm()
        if norm is not None and not torch.isfinite(norm):
            self._engine.zero_grad()
            return float(norm)
        if norm is not None and self._clip is not None:
            held = [parameter.grad for _, parameter in self._trainable if parameter.grad is not None]
            torch._foreach_mul_(held, torch.clamp(self._clip / (norm + 1e-6), max=1.0))
        self._engine.step()
        found = float(self._engine.get_global_grad_norm() if norm is None else norm)
        self._updates += math.isfinite(found)
        return found

    def discard(self) -> None:
        """Lets DeepSpeed make a step in which AdamW stands still: it clears all that it has gathered, as after any.

        Each ZeRO stage keeps gradients in other places, and counts micro-batches; they are cleared in its step alone
        (0.19.8: averaged_gradients and micro_step_id of stage 1 and 2, _pre_step of stage 3). The weights that the
        model computes with are made from the masters again, which gives the same bits.
        """
        self._adam.is_held = True
        try:
            self._engine.step()
        finally:
            self._adam.is_held = False

    @property
    def updates(self) -> int:
        """Updates that weights and moments have had."""
        return self._updates

    def tensors(self) -> dict[str, Tensor]:
        """Returns the masters in full by canonical name, on the CPU. Collective."""
        return {name: self._read(name, parameter, None) for name, parameter in self._trainable}

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Returns Adam's moments in full as `exp_avg.<name>` and `exp_avg_sq.<name>`, on the CPU. Collective."""
        return {
            f"{kind}.{name}": self._read(name, parameter, kind)
            for kind in MOMENTS
            for name, parameter in self._trainable
        }

    def load(self, tensors: Mapping[str, Tensor], moments: Mapping[str, Tensor], updates: int) -> None:
        """Puts parameters and moments back; without moments Adam starts afresh. Collective."""
        check_load(self._shapes, tensors, moments)
        self._updates = updates if moments else 0
        self._start_moments(self._updates)
        self._write(tensors, moments)

    def close(self) -> None:
        """Takes DeepSpeed's hooks off the model. After ZeRO 3 the model's weights stay in pieces: build it anew."""
        self._engine.destroy()
        self._flattening.remove()
        show_hidden(self._hidden)

    def _flatten(self, module: nn.Module, inputs: object, output: object) -> tuple[Tensor, ...] | None:
        """Hands on the model's output as a tuple of the tensors that carry a graph.

        ZeRO 3 finds the start of a module's backward by walking its output and sees no tensors inside a
        dataclass: it warns and leaves the module's own weights ungathered (DeepSpeed#1961). Hooks run in the
        order they were registered in, so DeepSpeed's see the tuple. Other calls of the model are left alone.
        """
        if not self._is_forward:
            return None
        tensors: list[Tensor] = []
        self._form = split(output, tensors)
        return tuple(tensors)

    def _plain_norm(self) -> Tensor | None:
        """Returns the gradients' norm where DeepSpeed steps the bare AdamW and keeps no norm: ZeRO 0 in float32."""
        if self._engine.optimizer is not self._adam:
            return None
        held = [(parameter, parameter.grad) for _, parameter in self._trainable if parameter.grad is not None]
        if self._experts is None:
            norms = [torch.linalg.vector_norm(gradient) for _, gradient in held]
            norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
            return norm
        shares = [gradient for parameter, gradient in held if is_share(parameter)]
        shared = [gradient for parameter, gradient in held if not is_share(parameter)]
        return self._experts.norm(shared, shares)

    def _owned(self) -> list[Tensor]:
        """Returns the tensors AdamW updates: this rank's flat float32 pieces, or whole tensors under ZeRO 0."""
        if self._spec.zero == 3:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [tensor for group in self._adam.param_groups for tensor in group["params"]]

    def _start_moments(self, updates: int) -> None:
        groups.start_moments(self._adam, self._owned(), updates)
        if self._spec.zero in (1, 2) or self._has_flat_bf16():
            # DeepSpeed links parameters to their moments once, in the first step: do it now, for the new tensors.
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _has_flat_bf16(self) -> bool:
        return hasattr(self._engine.optimizer, "fp32_groups_flat_partition")

    def _whole(self) -> dict[int, Tensor]:
        """Returns the master of each parameter under ZeRO 0, where nothing is cut up, by the parameter's id."""
        optimizer = self._engine.optimizer
        if optimizer is self._adam:
            return {id(parameter): parameter for _, parameter in self._trainable}
        pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        return {id(low): high for lows, highs in pairs for low, high in zip(lows, highs, strict=True)}

    def _read(self, name: str, parameter: nn.Parameter, kind: str | None) -> Tensor:
        """Returns a master (kind None) or a moment in full. Collective."""
        if self._spec.zero == 0:
            master = self._whole()[id(parameter)]
            found = master if kind is None else self._adam.state[master][kind]
        elif kind is None:
            found = safe_get_full_fp32_param(parameter)
        else:
            found = safe_get_full_optimizer_state(parameter, kind)
        whole = to_host(found).reshape(parameter.shape if self._spec.zero < 3 else self._shapes[name])
        if self._experts is not None and is_share(parameter):
            return self._experts.gather(whole.to(self._device)).cpu()
        return whole

    @torch.no_grad()
    def _write(self, tensors: Mapping[str, Tensor], moments: Mapping[str, Tensor], is_whole: bool = True) -> None:
        """Sets masters, moments and the model's own weights, from whole tensors or this process's own. Collective."""
        if self._experts is not None and is_whole:
            tensors, moments = self._own(tensors, ("",)), self._own(moments, tuple(f"{kind}." for kind in MOMENTS))
        put = {0: self._put_whole, 1: self._put_flat, 2: self._put_flat, 3: self._put_piece}[self._spec.zero]
        for name, parameter in self._trainable:
            put(parameter, tensors[name].to(self._device, torch.float32), None)
            for kind in MOMENTS if moments else ():
                put(parameter, moments[f"{kind}.{name}"].to(self._device, torch.float32), kind)
        self._publish(tensors)

    def _own(self, tensors: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
        """Returns this process's part of tensors by name."""
        assert self._experts is not None
        shares = {f"{prefix}{name}" for name, one in self._trainable if is_share(one) for prefix in prefixes}
        return {name: self._experts.cut(one) if name in shares else one for name, one in tensors.items()}

    def _put_whole(self, parameter: nn.Parameter, value: Tensor, kind: str | None) -> None:
        master = self._whole()[id(parameter)]
        (master.data if kind is None else self._adam.state[master][kind]).copy_(value)

    def _put_flat(self, parameter: nn.Parameter, value: Tensor, kind: str | None) -> None:
        if kind is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)

    def _put_piece(self, parameter: nn.Parameter, value: Tensor, kind: str | None) -> None:
        # safe_set_full_* cuts the value without the padding of the last rank's piece and fails where a size
        # is not a multiple of the world (DeepSpeed 0.19.8, stage3.set_full_hp_param; API of DeepSpeed#4192).
        size = cast(Any, parameter).ds_tensor.numel()
        padded = functional.pad(value.flatten(), (0, size * self._world - value.numel()))
        piece = padded.narrow(0, size * torch_dist.get_rank(), size)
        if kind is None:
            safe_set_local_fp32_param(parameter, piece)
        else:
            safe_set_local_optimizer_state(parameter, piece, kind)

    def _publish(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies new masters into the weights the model computes with."""
        parameters = [parameter for _, parameter in self._trainable]
        if self._spec.zero < 3:
            for name, parameter in self._trainable:
                parameter.data.copy_(tensors[name])
            return
        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0):
            if torch_dist.get_rank() == 0:
                for name, parameter in self._trainable:
                    parameter.data.copy_(tensors[name])
