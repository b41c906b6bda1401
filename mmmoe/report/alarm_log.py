"""What a report says of alarms: which stand at the end of a stage, and which were raised on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmmoe.report.alarms import Alarm, find_alarms, sentences
from mmmoe.report.experts import ExpertLoad, expert_load, short_routers
from mmmoe.report.files import StageLog


@dataclass(frozen=True)
class RaisedAlarm:
    """What one line of metrics.jsonl raised, a router and kind."""

    stage: str
    step: int
    text: str
    is_standing: bool
    """Whether any of it is so at the end of the stage."""


def standing_alarms(stage: StageLog) -> list[Alarm]:
    """Returns what is wrong with the routers at the end of a stage, with readable names."""
    load = expert_load(stage)
    return _readable(find_alarms(load.routers), load) if load is not None else []


def standing_sentences(stages: Sequence[StageLog]) -> list[str]:
    """Returns a sentence a router and kind for what stands at the end of each stage."""
    return [f"{stage.name}, {text}." for stage in stages for text in sentences(standing_alarms(stage))]


def raised_alarms(stages: Sequence[StageLog]) -> list[RaisedAlarm]:
    """Returns the alarms that were raised while the stages trained, in order."""
    raised = []
    for stage in stages:
        load = expert_load(stage)
        standing = {alarm.key for alarm in standing_alarms(stage)}
        for row in stage.rows:
            alarms = _readable([Alarm.read(record) for record in row.get("alarms") or ()], load)
            groups: dict[tuple[str, str], list[Alarm]] = {}
            for alarm in alarms:
                groups.setdefault((alarm.router, alarm.kind), []).append(alarm)
            for group in groups.values():
                is_standing = any(alarm.key in standing for alarm in group)
                raised += [RaisedAlarm(stage.name, row["step"], text, is_standing) for text in sentences(group)]
    return raised


def _readable(alarms: list[Alarm], load: ExpertLoad | None) -> list[Alarm]:
    routers = load.routers.names if load is not None else ()
    names = short_routers([*routers, *(alarm.router for alarm in alarms)])
    return [replace(alarm, router=names[alarm.router]) for alarm in alarms]
