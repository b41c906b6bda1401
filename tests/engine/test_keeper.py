"""Which checkpoints are written, which stay, and that a kill at any moment of a write leaves the newest sound one."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import Recorder, ToySource, on_processes, toy_engine, toy_training

from mmmoe import dist, env
from mmmoe.engine import checkpoint
from mmmoe.engine.checkpoint import CheckpointState
from mmmoe.engine.keeper import SCORES, CheckpointKeeper
from mmmoe.engine.loop import fit
from mmmoe.engine.spec import CheckpointSpec, EngineSpec
from mmmoe.engine.step_folders import all_steps, prune

KILLED = 77


class Held:
    """An engine with one weight, which is its step."""

    def __init__(self, step: int = 0) -> None:
        self.updates = step

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"w": torch.full((64,), float(self.updates))}

    def optimizer_tensors(self) -> dict[str, torch.Tensor]:
        return {"exp_avg.w": torch.zeros(64), "exp_avg_sq.w": torch.zeros(64)}

    def load(self, tensors: dict[str, torch.Tensor], moments: object, updates: int) -> None:
        self.updates = updates
        self.weight = float(tensors["w"][0])


def keeper_of(folder: Path, **fields: Any) -> CheckpointKeeper:
    return CheckpointKeeper(folder, CheckpointSpec(**fields), in_background=False)


def steps_in(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in all_steps(folder)]


def train(keeper: CheckpointKeeper, steps: range, scores: dict[int, float]) -> None:
    """Saves after each step that the keeper asks for; exams are sat at some of them."""
    for step in steps:
        told = {"shape": scores[step], "other": -scores[step]} if step in scores else {}
        if keeper.is_due(step, told):
            keeper.save(Held(step), CheckpointState(step, extra={SCORES: told} if told else {}))  # type: ignore[arg-type]


def test_every_nth_stays_beside_the_newest(tmp_path: Path) -> None:
    keeper = keeper_of(tmp_path, every=2, keep=2, keep_every=5)
    train(keeper, range(1, 17), {})
    assert steps_in(tmp_path) == [5, 10, 15, 16]


def test_the_best_stays_until_a_better_one_comes_and_of_equals_the_first(tmp_path: Path) -> None:
    scores = {3: 0.5, 6: 0.7, 9: 0.7, 12: 0.1}
    keeper = keeper_of(tmp_path, every=4, keep=1, keep_best="shape")
    train(keeper, range(1, 14), scores)
    assert steps_in(tmp_path) == [6, 12]
    best = keeper.best()
    assert best is not None
    assert (best.state.step, float(best.tensors["w"][0])) == (6, 6.0)
    train(keeper, range(14, 17), {15: 0.9})
    assert steps_in(tmp_path) == [15, 16]


def test_the_best_is_known_after_a_resume_and_a_damaged_one_is_not_taken(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"every": 4, "keep": 4, "keep_best": "shape"}
    train(keeper_of(tmp_path, **fields), range(1, 10), {3: 0.5, 6: 0.7, 9: 0.6})
    again = keeper_of(tmp_path, **fields)
    held = again.resume(Held())  # type: ignore[arg-type]
    assert held is not None
    assert held.state.step == 8
    assert not again.is_due(9, {"shape": 0.6})
    assert again.is_due(9, {"shape": 0.8})
    (tmp_path / "step_000006" / "model.safetensors").write_bytes(b"damaged")
    once_more = keeper_of(tmp_path, **fields)
    once_more.resume(Held())  # type: ignore[arg-type]
    best = once_more.best()
    assert best is not None
    assert best.state.step == 3


def test_updates_that_were_made_come_back_and_not_steps(tmp_path: Path) -> None:
    keeper_of(tmp_path).save(Held(5), CheckpointState(8))  # type: ignore[arg-type]
    held = Held()
    keeper_of(tmp_path).resume(held)  # type: ignore[arg-type]
    assert (held.updates, held.weight) == (5, 5.0)
    checkpoint.write(tmp_path, CheckpointState(9), Held(9).tensors(), {})
    keeper_of(tmp_path).resume(held)  # type: ignore[arg-type]
    assert held.updates == 9


def test_a_step_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    monkeypatch.setattr(checkpoint, "write", lambda folder, state, *_: written.append(state.step))
    keeper = keeper_of(tmp_path)
    for step in (3, 3, 4):
        keeper.save(Held(step), CheckpointState(step))  # type: ignore[arg-type]
    assert written == [3, 4]


def test_time_asks_for_a_checkpoint_on_the_first_process_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    keeper = keeper_of(tmp_path, every=None, minutes=2)
    now[0] += 119
    assert not keeper.is_overdue()
    now[0] += 2
    assert keeper.is_overdue()
    monkeypatch.setenv("RANK", "1")
    assert not keeper.is_overdue()
    monkeypatch.setenv("RANK", "0")
    keeper.save(Held(1), CheckpointState(1))  # type: ignore[arg-type]
    assert not keeper.is_overdue()
    assert not keeper_of(tmp_path, every=None).is_overdue()


class Late(Recorder):
    """The first process's clock asks at the third step."""

    def is_overdue(self) -> bool:
        return env.rank() == 0 and len(self.records) == 2


def save_late() -> list[object]:
    training, observer = toy_training(), Late(save_at=(4,))
    engine = toy_engine(EngineSpec(kind="local"), training)
    fit(engine, ToySource(env.rank(), env.world_size(), 2), training, 5, 0, observer)
    return dist.gather_objects((observer.saves, [record.loss for record in observer.records]))


@pytest.mark.slow
def test_all_processes_save_when_the_first_ones_clock_asks(tmp_path: Path) -> None:
    first, second = on_processes(2, tmp_path, save_late)
    assert first == second
    assert first[0] == [3, 4]


def test_the_clock_of_one_process_saves_after_the_step_at_hand() -> None:
    [(saves, _)] = save_late()  # type: ignore[misc]
    assert saves == [3, 4]


def killed_after(calls: int, work: Callable[[], object]) -> bool:
    """Does the work in a process that dies at the n-th call of the file system; says whether it died.

    A file that is being written at that moment stays half written.
    """
    child = os.fork()
    if child == 0:
        left = [calls]

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            touching = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir")
            if event not in touching or isinstance(arguments[0], int):
                return
            left[0] -= 1
            if left[0] < 0:
                os._exit(KILLED)

        save, flush = checkpoint.save_file, os.fsync

        def half(tensors: Any, path: Path) -> None:
            count("open", (str(path), "w", 0))
            save(tensors, path)
            left[0] -= 1
            if left[0] < 0:
                os.truncate(path, path.stat().st_size // 2)
                os._exit(KILLED)

        def flushed(handle: int) -> None:
            count("open", ("", "", 0))
            flush(handle)

        checkpoint.save_file, os.fsync = half, flushed
        sys.addaudithook(count)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, KILLED)
    return status == KILLED


def test_a_kill_at_any_call_of_a_write_leaves_the_newest_sound_checkpoint(tmp_path: Path) -> None:
    """Also where the same step is written again, and its older self steps aside meanwhile."""
    before = {2: 2, 3: 3}
    seen, calls = set(), 0
    while True:
        folder = tmp_path / str(calls)
        for step in before:
            checkpoint.write(folder, CheckpointState(step), Held(step).tensors(), {})
        rewritten = calls % 2 == 1
        new = 3 if rewritten else 4

        def work(folder: Path = folder, new: int = new) -> None:
            checkpoint.write(folder, CheckpointState(new), Held(new).tensors(), Held().optimizer_tensors())
            prune(folder, 1)

        died = killed_after(calls // 2, work)
        held = Held()
        found = CheckpointKeeper(folder, CheckpointSpec()).resume(held)  # type: ignore[arg-type]
        assert found is not None
        assert found.state.step in ({3} if rewritten else {3, 4})
        assert held.weight == found.state.step
        assert all(path.name.startswith("step_") for path in folder.iterdir()), list(folder.iterdir())
        seen.add((new, died, found.state.step, bool(found.moments)))
        if not died and rewritten:
            break
        calls += 1
    assert calls > 30
    assert {(4, True, 3, False), (4, True, 4, True), (3, True, 3, False), (3, True, 3, True)} <= seen


@pytest.mark.parametrize(("number", "kind"), [(errno.EROFS, "Read-only"), (errno.EACCES, "Permission denied")])
def test_a_place_that_cannot_be_written_is_told_and_harms_nothing(
    number: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = keeper_of(tmp_path)
    keeper.save(Held(1), CheckpointState(1))  # type: ignore[arg-type]

    def refuse(tensors: object, path: Path) -> None:
        # safetensors' own words
        raise checkpoint.SafetensorError(f"Error while serializing: I/O error: {kind} (os error {number})")

    monkeypatch.setattr(checkpoint, "save_file", refuse)
    with pytest.raises(OSError, match=f"{kind}.*checkpoints before it are intact") as told:
        keeper.save(Held(2), CheckpointState(2))  # type: ignore[arg-type]
    assert told.value.errno == number
    assert steps_in(tmp_path) == [1]
    assert checkpoint.verify(tmp_path / "step_000001") == []


@pytest.mark.parametrize(
    ("error", "kind", "number"),
    [
        (OSError(errno.EIO, "Input/output error", "x"), OSError, errno.EIO),
        (ValueError("a name that holds NUL"), ValueError, None),
        (MemoryError("no more"), MemoryError, None),
        (checkpoint.SafetensorError("nobody foresaw it"), RuntimeError, None),
    ],
)
def test_the_other_processes_hear_what_kind_of_error_the_writer_met(
    error: Exception, kind: type[Exception], number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other, said = keeper_of(tmp_path), keeper_of(tmp_path), list[Any]()
    first._writer.submit(raising(error))
    monkeypatch.setattr(dist, "as_on_first", lambda value: said.append(value) or said[0])
    with pytest.raises(type(error)) as own:
        first.wait()
    assert own.value is error
    with pytest.raises(kind, match="the first process could not write a checkpoint") as told:
        other.wait()
    assert type(told.value) is kind
    assert str(error) in str(told.value)
    assert getattr(told.value, "errno", None) == number


def raising(error: Exception) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call
