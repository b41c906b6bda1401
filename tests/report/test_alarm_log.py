"""What the report says of alarms: those that stand at the end, and those raised on the way."""

from mmmoe.report.alarm_log import raised_alarms, standing_sentences
from mmmoe.report.files import StageLog


def stage(end, **fields):
    """Returns a stage of ten even lines and two that end otherwise; fields go to the third line."""
    rows = [{"step": s, "positions": 1000, "load": {"a": {"text": {"0": [500, 500]}}}} for s in range(1, 11)]
    rows[2] |= fields
    for step in (11, 12, 13):
        rows.append({"step": step, "positions": 1000, "load": {"a": {"text": {"0": end}}}})
    return StageLog("moe", tuple(rows))


DEAD = {"kind": "dead", "router": "layer 0", "experts": [1], "share": 0.004}


def test_what_stands_at_the_end_names_stage_and_layer():
    assert standing_sentences([stage([1000, 0])]) == [
        "moe, layer 0: expert 1 gets 0 % of the choices: it is hardly trained.",
        "moe, layer 0: expert 0 gets 100 % of the choices: the router has collapsed onto it.",
    ]
    assert standing_sentences([stage([600, 400])]) == []


def test_what_was_raised_says_whether_it_is_over():
    (one,) = raised_alarms([stage([600, 400], alarms=[DEAD])])
    assert (one.stage, one.step, one.is_standing) == ("moe", 3, False)
    assert one.text == "layer 0: expert 1 gets 0.4 % of the choices: it is hardly trained"
    assert raised_alarms([stage([1000, 0], alarms=[DEAD])])[0].is_standing


def test_routers_of_one_layer_are_named_by_their_part():
    by_router = {"language.0.attn.q": [1000, 0], "language.0.attn.k": [500, 500]}
    row = {"step": 1, "positions": 1000, "load": {"a": {"text": {"0": [1500, 500]}}}, "load_by_router": by_router}
    dead, collapsed = standing_sentences([StageLog("moe", (row,))])
    assert dead.startswith("moe, layer 0, q: expert 1")
    assert collapsed.startswith("moe, layer 0, q: expert 0")
    alarm = DEAD | {"router": "language.0.attn.q"}
    (one,) = raised_alarms([StageLog("moe", (row | {"alarms": [alarm]},))])
    assert one.is_standing
    assert one.text.startswith("layer 0, q: expert 1")
