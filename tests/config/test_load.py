"""Configurations: includes, overrides, and every mistake of a file told at once with its place."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from mmmoe.config.load import ConfigError, dump, load
from mmmoe.config.spec import Spec


class Small(Spec):
    kind: Literal["small"] = "small"
    width: int = 3


class Large(Spec):
    kind: Literal["large"] = "large"
    depth: int


class Item(Spec):
    name: str
    rate: float = 0.1
    part: Small | Large = Field(default=Small(), discriminator="kind")


class Top(Spec):
    title: str
    items: list[Item] = []
    extra: Small | None = None


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def problems(path, overrides=(), spec=Top):
    with pytest.raises(ConfigError) as caught:
        load(path, spec, list(overrides))
    return caught.value.problems


def test_base_stands_below_the_files_own_keys(tmp_path):
    write(tmp_path, "item.yaml", "name: a\nrate: 0.5\npart: {kind: large, depth: 2}\n")
    top = load(write(tmp_path, "top.yaml", "title: t\nitems:\n- {base: item.yaml, rate: 0.7}\n"), Top)
    assert top.items[0] == Item(name="a", rate=0.7, part=Large(depth=2))


def test_several_bases_are_laid_one_over_the_other(tmp_path):
    write(tmp_path, "one.yaml", "title: one\nextra: {width: 1}\n")
    write(tmp_path, "two.yaml", "extra: {width: 2}\n")
    assert load(write(tmp_path, "top.yaml", "base: [one.yaml, two.yaml]\n"), Top).extra == Small(width=2)


def test_a_file_that_includes_itself_is_named(tmp_path):
    path = write(tmp_path, "loop.yaml", "base: loop.yaml\ntitle: x\n")
    assert any("includes itself" in line for line in problems(path))


def test_overrides_name_list_items_by_name_or_number(tmp_path):
    path = write(tmp_path, "top.yaml", "title: t\nitems: [{name: a}, {name: b}]\n")
    top = load(path, Top, ["items.b.rate=2", "items.0.rate=1e-3", "extra.width=9"])
    assert [item.rate for item in top.items] == [0.001, 2.0]
    assert top.extra == Small(width=9)


def test_every_mistake_is_told_with_file_line_and_neighbour(tmp_path):
    text = "titel: t\nitems:\n- name: a\n  rat: 1\n- name: b\n  rate: fast\n- name: c\n  part: {kind: large, dpth: 3}\n"
    lines = problems(write(tmp_path, "top.yaml", text))
    told = "\n".join(lines)
    assert "top.yaml:1: titel: unknown key; did you mean 'title'?" in told
    assert "title: is missing" in told
    assert "top.yaml:4: items.a.rat: unknown key; did you mean 'rate'?" in told
    assert "top.yaml:6: items.b.rate:" in told
    assert "'fast'" in told
    assert "top.yaml:8: items.c.part.dpth: unknown key; did you mean 'depth'?" in told
    assert len(lines) == 6


def test_a_mistake_in_an_included_file_names_that_file(tmp_path):
    write(tmp_path, "item.yaml", "name: a\n\nrates: 3\n")
    lines = problems(write(tmp_path, "top.yaml", "title: t\nitems:\n- {base: item.yaml}\n"))
    assert len(lines) == 1
    assert "item.yaml:3: items.a.rates: unknown key; did you mean 'rate'?" in lines[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title: t\ntitle: u\n", "given twice"),
        ("title: [1\n", "not valid YAML"),
        ("- 1\n", "must be a mapping"),
        ("title: t\nbase: gone.yaml\n", "top.yaml:2: base: no such file: gone.yaml"),
    ],
)
def test_broken_files(tmp_path, text, said):
    assert any(said in line for line in problems(write(tmp_path, "top.yaml", text)))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("title", "key.path=value"),
        ("items.z.rate=1", "named a"),
        ("titl=x", "did you mean 'title'"),
        ("title=[", "not valid YAML"),
    ],
)
def test_broken_overrides(tmp_path, override, said):
    path = write(tmp_path, "top.yaml", "title: t\nitems: [{name: a}]\n")
    assert any(said in line for line in problems(path, [override]))


def test_dump_loads_back_to_the_same_spec(tmp_path):
    top = Top(title="t: 'x'", items=[Item(name="a", rate=1e-5)])
    assert load(write(tmp_path, "again.yaml", dump(top)), Top) == top


def test_a_missing_file_is_told_and_its_neighbour(tmp_path):
    assert any("cannot be read" in line for line in problems(tmp_path / "none.yaml"))
    near = write(tmp_path, "llava_tiny.yaml", "title: t\n")
    assert problems(tmp_path / "lava_tiny.yaml") == [f"no such file; did you mean {near}?"]
    assert any("cannot be read" in line for line in problems(tmp_path / "none" / "lava_tiny.yaml"))


class Experts(Spec):
    kind: Literal["experts"] = "experts"
    experts: int | list[int] | Small
    rank: int = Field(ge=1)


class Adapted(Spec):
    adapters: list[Annotated[Small | Experts, Field(discriminator="kind")]]


@pytest.mark.parametrize("experts", ["4", "[2, 4]", "{width: 2}"])
def test_a_kind_that_is_also_a_key_is_not_taken_for_it(tmp_path, experts):
    text = f"adapters:\n- kind: experts\n  experts: {experts}\n  rank: 0\n  rnak: 3\n"
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, "top.yaml", text), Adapted)
    low, unknown = sorted(caught.value.problems)
    assert "top.yaml:4: adapters.0.rank: Input should be greater than or equal to 1, got 0" in low
    assert "top.yaml:5: adapters.0.rnak: unknown key; did you mean 'rank'?" in unknown


class Tree(Spec):
    family: Literal["tree"]
    height: int
    part: Small | Large = Field(default=Small(), discriminator="kind")


class Bush(Spec):
    family: Literal["bush"]
    branches: int = 3


Plant = Annotated[Tree | Bush, Field(discriminator="family")]


class Garden(Spec):
    plant: Plant


def test_a_file_may_be_one_of_several_families(tmp_path):
    assert load(write(tmp_path, "bush.yaml", "family: bush\n"), Plant) == Bush(family="bush")
    path = tmp_path / "tree.yaml"
    text = "family: tree\nheight: 2\npart: {kind: large, depth: 1, dpth: 3}\nbranchs: 1\nheigth: 3\n"
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, "tree.yaml", text), Plant)
    assert caught.value.problems == [
        f"{path}:3: part.dpth: unknown key; did you mean 'depth'?",
        f"{path}:4: branchs: unknown key; known: family, height, part",
        f"{path}:5: heigth: unknown key; did you mean 'height'?",
    ]


def test_a_mistake_inside_a_family_names_the_files_own_keys(tmp_path):
    path = write(tmp_path, "garden.yaml", "plant:\n  family: bush\n  height: 2\n")
    with pytest.raises(ConfigError) as caught:
        load(path, Garden)
    assert caught.value.problems == [f"{path}:3: plant.height: unknown key; known: branches, family"]
    path = write(tmp_path, "garden.yaml", "plant: {family: grass}\n")
    with pytest.raises(ConfigError, match=r"garden\.yaml:1: plant\.family: 'grass' is not known; known: bush, tree"):
        load(path, Garden)
    path = write(tmp_path, "garden.yaml", "plant: {height: 2}\n")
    with pytest.raises(ConfigError, match=r"garden\.yaml:1: plant\.family: is missing; known: bush, tree"):
        load(path, Garden)


@pytest.mark.parametrize("broken", [None, "family: [\n"], ids=["missing", "no YAML"])
def test_what_a_file_that_cannot_be_read_would_have_held_is_not_asked_for(tmp_path, broken):
    if broken is not None:
        write(tmp_path, "gone.yaml", broken)
    write(tmp_path, "empty.yaml", "# nothing\n")
    (line,) = problems(write(tmp_path, "garden.yaml", "plant: {base: empty.yaml, family: tree}\n"), spec=Garden)
    assert "plant.height: is missing" in line
    (line,) = problems(write(tmp_path, "garden.yaml", "plant: {base: gone.yaml, height: 2}\n"), spec=Garden)
    assert "gone.yaml" in line
    (line,) = problems(write(tmp_path, "garden.yaml", "plant: {base: gone.yaml}\n"), spec=Garden)
    assert "gone.yaml" in line
    line, other = problems(write(tmp_path, "tree.yaml", "base: gone.yaml\nfamily: tree\nheight: tall\n"), spec=Plant)
    assert "gone.yaml" in line
    assert "height: Input should be a valid integer" in other
    (line,) = problems(write(tmp_path, "bush.yaml", "plant:\n"), ["plant={base: none.yaml}"], spec=Garden)
    assert "no such file: none.yaml" in line


def test_problems_are_told_line_by_line_and_a_secret_once(tmp_path):
    text = "items:\n- rate: fast\n- name: b\n  password: open-sesame\n  name: c\ntitle: [t]\n"
    lines = problems(write(tmp_path, "top.yaml", text), ["items.b.rate=quick", "titl=x"])
    assert [line.partition(": ")[0].rpartition(":")[2] for line in lines[:5]] == ["2", "2", "4", "5", "6"]
    assert [line.partition("=")[0] for line in lines[5:]] == ["override 'items.b.rate", "override 'titl"]


def test_a_name_of_its_own_stands_for_an_items_number(tmp_path):
    text = (
        "title: t\nitems:\n- {name: a, rate: x}\n- {name: a, rate: x}\n- {name: b.c, rate: x}\n- {name: d, rate: x}\n"
    )
    lines = problems(write(tmp_path, "top.yaml", text))
    assert [line.split(": ")[1] for line in lines] == ["items.0.rate", "items.1.rate", "items.2.rate", "items.d.rate"]


def test_neighbours_of_a_base_and_of_a_kind_are_told(tmp_path):
    write(tmp_path, "item.yaml", "name: a\n")
    (line,) = problems(write(tmp_path, "top.yaml", "title: t\nitems: [{base: itme.yaml}]\n"))
    assert line.endswith("no such file: itme.yaml; did you mean item.yaml?")
    (line,) = problems(write(tmp_path, "top.yaml", "title: t\nextra: {kind: smal}\n"))
    assert "did you mean 'small'?" in line


def test_a_folder_is_no_configuration(tmp_path):
    (line,) = problems(tmp_path)
    assert "is a folder; give a file in it" in line
