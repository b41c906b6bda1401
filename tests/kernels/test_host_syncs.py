"""No op waits on the host: nothing reads a number of a tensor, in the ops or between them."""

from __future__ import annotations

import pytest
import torch
from host_kernels import needs_kernels
from torch.utils._python_dispatch import TorchDispatchMode

from mmmoe.kernels.combine import op as combine_op
from mmmoe.kernels.dispatch import op as dispatch_op
from mmmoe.kernels.grouped_lora import fused as fused_op
from mmmoe.kernels.grouped_lora import op as lora_op
from mmmoe.kernels.grouped_lora.op import grouped_lora
from mmmoe.kernels.route_topk import op as route_op
from mmmoe.kernels.send_order import op as send_op

WAITS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.bincount.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.repeat_interleave.Tensor,
}
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}
READERS = ("tolist", "numpy", "cpu", "item", "__bool__", "__int__", "__float__")
"""Methods that read numbers on the host; on a CPU some of them never reach the dispatcher."""


class CountWaits(TorchDispatchMode):
    """Counts what would make a GPU's host wait."""

    def __init__(self):
        super().__init__()
        self.waits = []
        self.patch = pytest.MonkeyPatch()

    def __enter__(self):
        for name in READERS:
            self.patch.setattr(torch.Tensor, name, self.counted(name, getattr(torch.Tensor, name)))
        return super().__enter__()

    def counted(self, name, read):
        def reader(tensor, *arguments):
            self.waits.append(name)
            return read(tensor, *arguments)

        return reader

    def __exit__(self, *error):
        self.patch.undo()
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        by_mask = function in INDEXING and any(t is not None and t.dtype == torch.bool for t in args[1])
        if function in WAITS or by_mask:
            self.waits.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Leaves out the checks of values, which are made on a CPU alone."""
    for module in (combine_op, dispatch_op, fused_op, lora_op, send_op):
        for check in ("check_range", "check_inverse"):
            monkeypatch.setattr(module, check, lambda *_, **__: None, raising=False)


@needs_kernels
@pytest.mark.usefixtures("as_on_a_gpu")
def test_no_op_reads_a_number_of_a_tensor():
    logits, x = torch.randn(40, 6), torch.randn(40, 8)
    a, b = torch.randn(6, 4, 8), torch.randn(6, 8, 4)
    with CountWaits() as counted:
        gate, expert, _, offset, order, inverse = route_op._run(logits, torch.ones(40, dtype=torch.bool), 2, 0, 9, True)
        route_op._run_backward(gate, logits, expert, inverse, 0)
        rows = dispatch_op._run(x, order, inverse)
        y = combine_op._run(rows, gate, order, inverse)
        combine_op._run_backward(y, rows, gate, order, inverse)
        combine_op._run_gather_sum(rows, None, inverse, 40)
        y, z, order, offset = fused_op._run(x, x, a, b, expert, gate, 1.0)
        fused_op._run_backward(y, x, a, b, gate, z, order, offset, 1.0, True)
        send_op._run(expert, 6, 2)
    assert counted.waits == []


@needs_kernels
@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("strategy", ["masked", "fused"])
def test_nothing_waits_between_the_ops(strategy):
    x = torch.randn(40, 8, requires_grad=True)
    a, b = torch.randn(6, 4, 8, requires_grad=True), torch.randn(6, 8, 4, requires_grad=True)
    logits = torch.randn(40, 6, requires_grad=True)
    with CountWaits() as counted:
        routing = route_op.route_topk(logits, 2)
        y = grouped_lora(x, x, a, b, routing.expert_NK, routing.gate_NK, scale=1.0, strategy=strategy)
        rows = dispatch_op.dispatch(y, routing.order_S, routing.inverse_S)
        combine_op.combine(rows, routing.gate_NK, routing.order_S, routing.inverse_S).sum().backward()
    assert counted.waits == []


def test_the_count_sees_a_wait():
    with CountWaits() as counted:
        torch.ones(3).sum().item()
        torch.ones(3).nonzero()
        torch.ones(3).tolist()
        torch.ones(3)[torch.ones(3) > 0]
        torch.ones(3).repeat_interleave(torch.ones(3, dtype=torch.int64))
    assert {"item", "tolist"} <= set(counted.waits)
    assert {str(torch.ops.aten.nonzero.default), str(torch.ops.aten.index.Tensor)} <= set(counted.waits)
    assert str(torch.ops.aten.repeat_interleave.Tensor) in counted.waits


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("strategy", ["masked", "fused"])
def test_a_gpu_never_waits(strategy):
    def draw(*shape):
        return torch.randn(shape, device="cuda", requires_grad=True)

    logits, x, a, b = draw(40, 6), draw(40, 8), draw(6, 4, 8), draw(6, 8, 4)

    def step():
        routing = route_op.route_topk(logits, 2)
        y = grouped_lora(x, x, a, b, routing.expert_NK, routing.gate_NK, scale=1.0, strategy=strategy)
        rows = dispatch_op.dispatch(y, routing.order_S, routing.inverse_S)
        combine_op.combine(rows, routing.gate_NK, routing.order_S, routing.inverse_S).sum().backward()
        send_op.send_order(routing.expert_NK, 6, 2)

    step()  # the library is loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
