"""The rule that calls an expert dead or a router collapsed: one place for the report and for the watch in training.

All shares are shares of one router's choices, so they add up to 1 whatever the number k of experts a position chooses;
an equal share is 1 / E.

| alarm     | when                                                                                              |
|-----------|---------------------------------------------------------------------------------------------------|
| dead      | an expert gets under 1 %, and under a tenth of an equal share, of the choices                      |
| collapsed | the k most used experts get over 95 %: all others together get under 5 %, and under a tenth of     |
|           | their equal share (E - k) / E, of the choices                                                      |

Neither is asked of a router with no choice (E = k, one expert), nor before there are 100 choices an expert. With
selection dense every expert takes part; there the count is of the most probable one, so k is 1; with top_p k is the
mean, rounded up. Where a layer has several routers each is judged by itself. In training the rule is put to the last
steps at every step (`mmmoe.stages.watch`), in the report to the last fifth of a stage.

Left out: a router without preference. Its entropy is near the largest, but that is also where the balance loss alone,
as in LLaVA-MoLE's un-gated rule, is meant to lead; the entropy plot and the split say which of the two it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmmoe.report.router_counts import RouterCounts

DEAD_SHARE = 0.01
LEFT_SHARE = 0.05
"""What must be left to all but the k most used experts."""
EQUAL_PART = 0.1
"""Both bounds are at most this part of an equal share."""
LEAST_CHOICES = 100
"""Choices an expert, on average, below which nothing is said."""

Kind = Literal["dead", "collapsed"]


@dataclass(frozen=True)
class Alarm:
    """One thing that is wrong with one router."""

    kind: Kind
    router: str
    experts: tuple[int, ...]
    """The dead one, or those that the router has collapsed onto."""
    share: float
    """Of the router's choices, that these experts get."""

    @property
    def key(self) -> tuple[str, str, tuple[int, ...]]:
        """What it is about, whatever the share."""
        return self.kind, self.router, self.experts

    def record(self) -> dict[str, Any]:
        """Returns the alarm as it stands in a step's line."""
        share = round(self.share, 5)
        return {"kind": self.kind, "router": self.router, "experts": list(self.experts), "share": share}

    @classmethod
    def read(cls, record: dict[str, Any]) -> Alarm:
        """Returns the alarm of a step's line."""
        return cls(record["kind"], record["router"], tuple(record["experts"]), float(record["share"]))


def find_alarms(counts: RouterCounts) -> list[Alarm]:
    """Returns what is wrong with the routers, in their order, dead experts first."""
    experts_R, chosen_R, total_R = counts.num_experts(), counts.num_chosen(), np.nansum(counts.count_RE, axis=1)
    judged_R = (experts_R > chosen_R) & (chosen_R > 0) & (total_R >= LEAST_CHOICES * experts_R)
    if not judged_R.any():
        return []
    share_RE = np.nan_to_num(counts.shares(), nan=0.0)
    exists_RE = np.isfinite(counts.count_RE)
    bound_R = np.minimum(DEAD_SHARE, EQUAL_PART / np.maximum(experts_R, 1))
    dead_RE = exists_RE & (share_RE < bound_R[:, None]) & judged_R[:, None]
    descending_RE = -np.sort(-share_RE, axis=1)
    top_RE = np.arange(share_RE.shape[1])[None] < chosen_R[:, None]
    left_R = (descending_RE * ~top_RE).sum(axis=1)
    left_bound_R = np.minimum(LEFT_SHARE, EQUAL_PART * (1 - chosen_R / np.maximum(experts_R, 1)))
    collapsed_R = judged_R & (left_R < left_bound_R)
    found = []
    for router in np.flatnonzero(dead_RE.any(axis=1) | collapsed_R):
        name, share_E = counts.names[router], share_RE[router]
        for expert in np.flatnonzero(dead_RE[router]):
            found.append(Alarm("dead", name, (int(expert),), float(share_E[expert])))
        if collapsed_R[router]:
            most = np.sort(np.argsort(-share_E, kind="stable")[: int(chosen_R[router])])
            found.append(Alarm("collapsed", name, tuple(map(int, most)), float(share_E[most].sum())))
    return found


def sentences(alarms: Iterable[Alarm]) -> list[str]:
    """Returns one sentence a router and kind: its dead experts stand together."""
    groups: dict[tuple[str, str, tuple[int, ...]], list[Alarm]] = {}
    for alarm in alarms:
        experts = alarm.experts if alarm.kind == "collapsed" else ()
        groups.setdefault((alarm.router, alarm.kind, experts), []).append(alarm)
    return [_sentence(group) for group in groups.values()]


def _sentence(group: list[Alarm]) -> str:
    experts = [expert for alarm in group for expert in alarm.experts]
    plural = len(experts) > 1
    who = f"expert{'s' if plural else ''} {_listed(experts)} get{'' if plural else 's'}"
    share = _percent(max(alarm.share for alarm in group))
    if group[0].kind == "collapsed":
        them = "them" if plural else "it"
        return f"{group[0].router}: {who} {share} of the choices: the router has collapsed onto {them}"
    most = f"at most {share}" if plural else share
    return f"{group[0].router}: {who} {most} of the choices: {'they are' if plural else 'it is'} hardly trained"


def _listed(numbers: list[int]) -> str:
    texts = [str(number) for number in numbers]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
