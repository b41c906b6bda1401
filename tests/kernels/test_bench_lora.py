"""bench lora: contenders against literal loops, bytes of known cases, the whole run in small, table and files."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from cases import assert_same

from mmmoe.kernels import bench
from mmmoe.kernels import measure as measuring
from mmmoe.kernels.grouped_lora.reference import grouped_lora_reference
from mmmoe.kernels.lora_ffn.op import Factors, Frozen
from mmmoe.kernels.lora_ffn.reference import lora_ffn_reference
from mmmoe.kernels.measure import Point, Result, compare_amounts, one_thread
from mmmoe.kernels.memory import peak_of, weigh

CPU = torch.device("cpu")
TINY = {"tokens": 12, "width": 8, "inner": 16, "rank": 2, "rounds": 1}
TINY_CURVES = {"curve_tokens": 8, "curve_width": 8, "curve_inner": 16, "curve_rounds": 1}
LEVELS = ["FFN block", "linear"]


@pytest.fixture
def lora():
    """The benchmark's module."""
    return bench.load("lora")


@pytest.fixture
def others(lora):
    """The module of its contenders, which lies beside it."""
    return sys.modules[lora.Contender.__module__]


def reference(level, drawn, factors, index, gate):
    if level == "linear":
        base = torch.nn.functional.linear(drawn.x, drawn.weights[0])
        return grouped_lora_reference(base, drawn.x, *factors[0], index, gate, scale=2.0)
    pairs = [Factors(a, b) for a, b in factors]
    return lora_ffn_reference(drawn.x, Frozen(*drawn.weights), *pairs, index, gate, scale=2.0)


def wanted(level, name, drawn, others):
    """What the literal loop says: its value, and gradients in the order of the contender's leaves."""
    factors = {others.PLAIN: drawn.wide, others.PEFT: drawn.wide, others.PLAIN_ONE: drawn.narrow}.get(name)
    if name == others.FROZEN:
        factors = [(a * 0, b * 0) for a, b in drawn.wide]
    if factors is None:
        index, gate, factors, leaves = drawn.index, drawn.gate, drawn.experts, [drawn.x, drawn.gate]
    else:  # one expert for all
        index, gate = torch.zeros_like(drawn.index[:, :1]), torch.ones_like(drawn.gate[:, :1])
        factors, leaves = [(a[None], b[None]) for a, b in factors], [drawn.x]
    y = reference(level, drawn, factors, index, gate)
    if name != others.FROZEN:
        leaves += [factor for pair in factors for factor in pair]
    return y, torch.autograd.grad(y, leaves, drawn.dy)


@pytest.mark.parametrize("sizes", [(9, 8, 12, 4, 2, 3), (5, 4, 6, 9, 3, 2), (3, 4, 4, 1, 1, 2)], ids=str)
@pytest.mark.parametrize("level", LEVELS)
def test_every_contender_is_the_literal_loop(lora, others, level, sizes):
    torch.manual_seed(0)
    drawn, contenders = lora.LEVELS[level](others.Shape(*sizes), CPU, torch.float64)
    drawn.x.data.mul_(3.0)
    for pair in (*drawn.experts, *drawn.wide, *drawn.narrow):
        for factor in pair:
            factor.data.mul_(20.0)  # so that an update weighs as much as what it is added to
    for name, contender in contenders.items():
        y, gradients = wanted(level, name, drawn, others)
        found = contender.forward()
        assert_same([found.detach()], [y.detach()])
        assert_same(
            contender.backward(found), [g.view_as(leaf) for g, leaf in zip(gradients, contender.leaves, strict=True)]
        )


@pytest.mark.parametrize("level", LEVELS)
def test_all_six_take_part_and_peft_only_where_it_is(lora, others, level, monkeypatch):
    shape = others.Shape(4, 4, 8, 3, 2, 2)
    extra = {others.PLAIN_ONE} if level == "linear" else set()
    without = {others.FROZEN, others.PLAIN, others.MOE_PEFT, others.LOOP, others.OURS} | extra
    _, contenders = lora.LEVELS[level](shape, CPU, torch.float32)
    assert set(contenders) == without | ({others.PEFT} if others.has_peft() else set())
    monkeypatch.setattr(others, "find_spec", lambda name: None)
    _, contenders = lora.LEVELS[level](shape, CPU, torch.float32)
    assert set(contenders) == without


def test_bytes_of_a_step_are_counted():
    x, dy = torch.randn(1000, requires_grad=True), torch.ones(1000)
    weighed = weigh(lambda: x.exp().neg(), lambda y: torch.autograd.grad(y, x, dy), [x, dy], CPU)
    assert weighed.kept == 4000  # what exp returns; neg keeps nothing
    assert weighed.peak == 4 * 4000  # it, the value, its gradient and that of x
    torch.testing.assert_close(weighed.value, -x.detach().exp())


def test_what_is_given_is_not_kept_and_views_count_once():
    x, weight = torch.randn(50, 20, requires_grad=True), torch.randn(20, 20, requires_grad=True)

    def forward():
        h = x @ weight  # keeps both, and both are given
        return h[:25] * h[25:]  # keeps two views of one storage

    weighed = weigh(forward, lambda y: torch.autograd.grad(y.sum(), [x, weight]), [x, weight], CPU)
    assert weighed.kept == 50 * 20 * 4


def test_what_is_freed_on_the_way_lives_no_longer():
    x = torch.zeros(1000)

    def run():
        a = x.neg()
        b = a.neg()
        del a
        return b.neg()

    assert peak_of(run, CPU) == 2 * 4000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_counts_the_same_step():
    x, dy = torch.randn(2**20, device="cuda", requires_grad=True), torch.ones(2**20, device="cuda")
    weighed = weigh(lambda: x.exp().neg(), lambda y: torch.autograd.grad(y, x, dy), [x, dy], x.device)
    assert (weighed.kept, weighed.peak) == (2**22, 4 * 2**22)


@pytest.fixture(scope="module")
def results():
    """The whole benchmark in small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "LEAST_SECONDS", 0.0)
        patch.setattr(bench, "here", lambda: CPU)
        return bench.measure("lora", TINY | TINY_CURVES)


def test_the_table_has_every_contender_shape_and_measure(results, lora, others):
    table = [r for r in results if r.point is None]
    names = {r.name for r in table}
    shapes = [f"{level} 8 to 16, E {e}, K {k}" for level in LEVELS for e, k in lora.EXPERTS_CHOSEN]
    measures = (lora.STEP, lora.FORWARD, lora.KEPT, lora.PEAK)
    assert names == {f"{shape}: {what}" for shape in (*shapes, "linear 8 to 8, E 8, K 2") for what in measures}
    versus = {others.FROZEN, others.PLAIN, others.MOE_PEFT, others.LOOP, *([others.PEFT] if others.has_peft() else [])}
    for shape in shapes:
        extra = {others.PLAIN_ONE} if shape.startswith("linear") else set()
        for what in measures:
            nothing = {others.FROZEN} if (what, bool(extra)) == (lora.KEPT, True) else set()
            assert {r.versus for r in table if r.name == f"{shape}: {what}"} == (versus | extra) - nothing
    assert {r.unit for r in table if r.name.endswith((lora.KEPT, lora.PEAK))} == {"MiB"}
    assert {r.unit for r in table if r.name.endswith((lora.STEP, lora.FORWARD))} == {"ms"}
    assert all(r.value > 0 and r.versus_value > 0 and r.low <= r.ratio <= r.high for r in table if r.unit == "MiB")
    assert all(r.error < 1e-4 for r in table if r.error is not None)


def test_every_bound_of_a_cpu_is_looked_at(results, lora):
    table = [r for r in results if r.point is None]
    found = {(r.name, r.versus, r.bound) for r in table if r.bound is not None}
    wanted = {
        (f"{level} 8 to 16, E {e}, K {k}: {what}", versus, bound)
        for (level, e, k, what), bounds in lora.CPU_BOUNDS.items()
        for versus, bound in bounds.items()
    }
    square = {r for r in found if "8 to 8," in r[0]}
    assert found - square == wanted
    assert {bound for *_, bound in square} == {1.15}


def test_the_curves_vary_one_axis_each(results, others, lora):
    points = [r for r in results if r.point is not None]
    axes = {"experts": 7, "chosen": 4, "rank": 5, "tokens": 5}
    for level in LEVELS:
        for axis, count in axes.items():
            for curve in (others.OURS, others.PLAIN, others.MOE_PEFT):
                mine = [r for r in points if (r.point.level, r.point.axis, r.point.curve) == (level, axis, curve)]
                assert len(mine) == count
                assert {r.versus for r in mine} == {others.FROZEN}
                assert [r.sizes[axis] for r in mine] == [r.point.at for r in mine]
    assert len(points) == 2 * 3 * sum(axes.values())
    assert next(r for r in points if r.point.axis == "experts" and r.point.at == 1).sizes["chosen"] == 1


def test_files_hold_what_was_measured(results, tmp_path):
    assert bench.publish("lora", results, tmp_path, check=False)
    (file,) = tmp_path.glob("*-lora.json")
    found = json.loads(file.read_text())
    assert found["name"] == "lora"
    assert len(found["results"]) == len(results)
    assert {"unit", "value", "versus_value", "point", "sizes"} <= set(found["results"][0])
    assert file.with_suffix(".png").stat().st_size > 10_000


def test_a_missed_bound_is_told(tmp_path, capsys):
    good = compare_amounts("own", 3.0, "theirs", 4.0, "MiB", bound=0.75)
    bad = Result("slow", "fast", 1.2, 1.1, 1.3, 12.0, 10.0, bound=1.15)
    assert (good.ratio, good.value, good.versus_value, good.unit) == (0.75, 3.0, 4.0, "MiB")
    assert bench.publish("lora", [good], None, check=True)
    assert not bench.publish("lora", [good, bad], tmp_path / "x.json", check=True)
    assert bench.publish("lora", [good, bad], None, check=False)
    told = capsys.readouterr().err
    assert "met: own / theirs 0.750, bound 0.75" in told
    assert "MISSED: slow / fast 1.200, bound 1.15" in told
    assert "MiB" in told
    assert (tmp_path / "x.png").is_file()


def test_a_curve_that_lacks_a_place_leaves_it_empty(capsys):
    points = [Point("block", "experts", at, curve) for at, curve in ((1, "ours"), (2, "ours"), (2, "theirs"))]
    bench.publish("x", [Result("n", "frozen", 1.5, 1, 2, 3, 2, point=point) for point in points], None, check=True)
    assert "curves over experts" in capsys.readouterr().err


def test_the_ops_together_leave_it_out_and_sizes_are_its_own(monkeypatch):
    assert "lora" in bench.names()
    ran = []
    monkeypatch.setattr(bench, "load", lambda name: ran.append(name) or type("M", (), {"DEFAULTS": {}, "measure": ran}))
    with pytest.raises(ValueError, match="unknown sizes"):
        bench.measure("kernels", {"curve_tokens": 1})
    assert "lora" not in ran
    assert "grouped_lora" in ran


def test_parts_of_a_run_are_timed_from_its_start(monkeypatch):
    monkeypatch.setattr(measuring, "LEAST_SECONDS", 0.0)
    order = []
    ways = {name: [lambda n=name: order.append((n, 0)), lambda n=name: order.append((n, 1))] for name in "ab"}
    with one_thread(CPU):
        first, second = measuring.take_turns_in_parts(ways, 2, CPU, warmup=1)
    assert order == [(n, part) for names in ("ab", "ba", "ab") for n in names for part in (0, 1)]
    assert {len(seconds) for seconds in (*first.values(), *second.values())} == {2}
    assert all(a <= b for name in "ab" for a, b in zip(first[name], second[name], strict=True))
