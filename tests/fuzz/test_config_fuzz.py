"""Configurations that are damaged or hostile: loaded to a spec that says itself again, or refused with every reason."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import strategies as st
from mutations import damaged
from pydantic import Field

from mmmoe.config import document
from mmmoe.config.load import ConfigError, dump, load
from mmmoe.config.spec import Spec


class Small(Spec):
    kind: Literal["small"] = "small"
    width: int = 3


class Large(Spec):
    kind: Literal["large"] = "large"
    depth: int
    anything: dict[str, Any] = {}


class Part(Spec):
    name: str
    rate: float = 0.1
    part: Small | Large = Field(default=Small(), discriminator="kind")


class Top(Spec):
    title: str
    parts: list[Part] = []
    given: dict[str, Any] = {}


TOP = b"""# a run
base: [base.yaml, more/other.yaml]
title: "a title"
parts:
- {base: part.yaml, name: one, rate: 1e-3}
- name: two
  part: {kind: large, depth: 3, anything: {a: [1, 2.5, null, 2001-12-14], b: !!str 7}}
- &third
  name: three
given:
  deep: {deeper: [[1], [*third]]}
  text: |
    lines
"""
BESIDE = {"base.yaml": "title: lower\ngiven: {x: 1}\n", "part.yaml": "name: p\npart:\n  kind: small\n  width: 9\n"}
PIECES = (
    b"&a ", b"*a", b"*third", b"<<: *third", b"base: top.yaml", b"base: ~nobody/x", b"base: \"\\0\"", b"!!int ",
    b"!!python/object:os.system ", b"!!binary ", b"[", b"{", b"]", b"}", b"? ", b": ", b"- ", b"\n", b"\t", b"'", b'"',
    b"2001-99-99", b"99999999999999999999", b".inf", b"=", b"---\n", b"%YAML 9.9\n", b"|", b">", b"\xff", b"#", b"on",
    b"0x", b"0b2", b"1:99:99", b"\\U00110000", b"!!set ", b"!!omap ", b"!<tag:yaml.org,2002:float> ", b"1_0",
)  # fmt: skip
OVERRIDES = st.lists(
    st.one_of(
        st.builds(
            "{}={}".format,
            st.sampled_from(
                ["title", "parts.one.rate", "parts.0", "parts.9.x", "parts.².x", "given.a.b", "base", "", "..", "given"]
            ),
            st.one_of(st.text(max_size=12), st.sampled_from([piece.decode("latin-1") for piece in PIECES])),
        ),
        st.text(max_size=20),
    ),
    max_size=2,
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "other.yaml").write_text("given: {y: {base: ../part.yaml}}\n")
    for name, text in BESIDE.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_damaged_configurations(fuzz, folder):
    path, again = folder / "top.yaml", folder / "again.yaml"

    def read(given):
        content, overrides = given
        path.write_bytes(content)
        try:
            spec = load(path, Top, overrides)
        except ConfigError as error:
            return "refused" if error.problems else "refused without a reason"
        again.write_text(dump(spec))
        # What no number equals, not itself either, is told by its text.
        assert dump(load(again, Top)) == dump(spec)
        return "loaded"

    seen = fuzz(st.tuples(damaged(TOP, PIECES), OVERRIDES), read)
    assert seen["loaded"] > 0
    assert not seen["refused without a reason"]
    assert seen["refused"] > seen["loaded"] / 20


def refusal(folder, text):
    path = folder / "top.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, Top)
    return "\n".join(caught.value.problems)


def test_aliases_of_aliases_are_counted_and_not_unfolded(folder):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert f"more than {document.MAX_VALUES} values" in refusal(folder, "\n".join(lines))


def test_a_value_inside_itself_is_refused(folder):
    assert f"more than {document.MAX_DEPTH} deep" in refusal(folder, "title: &a [*a]\n")


@pytest.mark.parametrize("depth", [60, 300, 100_000])
def test_deep_nesting_is_refused(folder, depth):
    assert f"more than {document.MAX_DEPTH} deep" in refusal(folder, "title: " + "[" * depth + "]" * depth)


def test_files_that_include_twice_what_includes_twice_are_counted(folder):
    for n in range(12):
        (folder / f"n{n}.yaml").write_text(f"a: {{base: n{n + 1}.yaml}}\nb: {{base: n{n + 1}.yaml}}\n")
    (folder / "n12.yaml").write_text("x: 1\n")
    assert "files are included" in refusal(folder, "base: n0.yaml\n")


def test_a_circle_of_three_files_is_named(folder):
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        (folder / f"{name}.yaml").write_text(f"base: {other}.yaml\n")
    assert "a.yaml: includes itself through top.yaml -> a.yaml -> b.yaml -> c.yaml" in refusal(folder, "base: a.yaml\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<<: {title: x}\n", "merge key"),
        ("? [a, b]\n: 1\n", "a key must be plain text"),
        ("title: !!python/object/apply:os.system [ls]\n", "title"),
        ("title: x\ngiven: {when: 2001-99-99}\n", "is no timestamp"),
        ("title: x\nbase: ''\n", "no such file"),
        ("title: " + "x" * 2**20, "has more than 1048576 bytes"),
    ],
)
def test_what_is_not_read_is_told(folder, text, said):
    assert said in refusal(folder, text)


def test_a_device_does_not_hang(tmp_path):
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="has more than"):
        load(tmp_path / "zero.yaml", Top)
