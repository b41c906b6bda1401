"""Makes the demo's data: pictures of three domains, dialogues, benchmarks and a tokenizer, in data/local/demo.

Run it as `python data/prepare_demo.py`. A second run finds the manifest, checks the hashes and ends at once.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
from pathlib import Path
from typing import Any

from demo.manifest import manifest_of
from demo.packages import fetch
from preparation.entry import carry_out
from preparation.progress import bars
from rich.console import Console
from rich.progress import Progress

SCRIPT = Path(__file__).resolve()
FOLDER = SCRIPT.parent / "local" / "demo"
PACKAGES = FOLDER / "packages"
SAMPLES_PER_SHARD = 1024
SOURCES = ("text", "caption_drawing", "caption_scene", "general", "document", "chart")
console = Console(stderr=True)


def main() -> int:
    """Prepares the data if it is not there, and returns the exit code."""
    return carry_out("demo data", FOLDER, lambda: manifest_of(FOLDER, SCRIPT), prepare, console)


def prepare() -> dict[str, Any]:
    """Runs every step and returns the counts."""
    from demo.plan import load_world

    with bars(console) as progress:
        get = progress.add_task("fetch packages", total=None)
        fetch(PACKAGES, lambda name: progress.update(get, description=f"fetch {name}"))
        progress.update(get, description="fetch packages", total=1, completed=1)
        clear()
        world = load_world(PACKAGES)
        rows, counts = write_sources(world, progress)
        for split, folder in (("test", "benchmarks"), ("validation", "validation")):
            counts[folder] = write_benchmarks(world, split, FOLDER / folder, progress)
        counts["tokenizer"] = write_tokenizer(rows, progress)
        pack_sources(progress)
    return counts


def clear() -> None:
    """Removes what an earlier preparation left; the packages stay."""
    (FOLDER / "manifest.json").unlink(missing_ok=True)
    for name in ("images", "shards", "tokenizer", "benchmarks", "validation", *SOURCES):
        shutil.rmtree(FOLDER / name, ignore_errors=True)


def draw(pictures: list[Any], root: Path, title: str, progress: Progress) -> list[Any]:
    """Draws pictures behind a progress bar."""
    from demo.render import draw_all

    task = progress.add_task(title, total=len(pictures))
    return draw_all(pictures, root, PACKAGES, lambda count: progress.advance(task, count))


def write_sources(world: Any, progress: Progress) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Draws the training pictures and writes all sources' dialogues."""
    from demo.corpus import caption_row, question_rows, text_rows
    from demo.plan import DOMAINS, PLANNED_DOMAIN, TEXT, TRAIN, planned, train_emoji

    pool = pool_of(world, "train")
    emoji = draw(train_emoji(world), FOLDER / "images", "draw emoji", progress)
    plan = planned(world, "train", TRAIN, "scenes")
    rest = draw([p for kind in plan.values() for p in kind], FOLDER / "images", "draw scenes and documents", progress)
    domain_of = {picture.path: PLANNED_DOMAIN[kind] for kind, pictures in plan.items() for picture in pictures}
    domain_of |= {picture.path: "general" for picture in emoji}
    pictures = [*emoji, *rest]
    rows = {
        "caption_drawing": [caption_row(p, domain_of[p.path], pool) for p in emoji],
        "caption_scene": [caption_row(p, domain_of[p.path], pool) for p in rest],
    }
    for domain in DOMAINS:
        rows[domain] = question_rows([p for p in pictures if domain_of[p.path] == domain], domain, pool)
    described = [p for kind in planned(world, "train", TEXT, "text").values() for p in kind]
    rows["text"] = text_rows([*emoji, *emoji, *described], world.concepts["train"], pool)
    for source, lines in rows.items():
        (FOLDER / source).mkdir(parents=True, exist_ok=True)
        (FOLDER / source / "train.json").write_text(json.dumps(lines, indent=0))
    return rows, {"pictures": len(pictures), **{source: len(lines) for source, lines in rows.items()}}


def pool_of(world: Any, split: str) -> Any:
    """Returns the wrong answers: names are always those of training, words the split's own."""
    from demo.questions import Pool

    return Pool(tuple(concept.name for concept in world.kinds("train")), tuple(world.words[split]))


def write_benchmarks(world: Any, split: Any, folder: Path, progress: Progress) -> dict[str, int]:
    """Draws a held-out split's pictures and writes its questions."""
    from demo.benchmarks import BENCHMARKS, capped_colours, lines_of, remove_unused
    from demo.documents import Press
    from demo.plan import TEST, VALIDATION, held_out_emoji, planned

    amount = TEST if split == "test" else VALIDATION
    held = held_out_emoji(world, split)
    plan: dict[str, list[Any]] = planned(world, split, amount, "images")
    press = Press(PACKAGES, world.words[split], split, f"images/{split}-font", test_font=split == "test")
    plan |= {"seen": held.seen, "unseen": held.unseen, "coloured": held.coloured}
    plan["font_words"] = press.word_cards(amount.words)
    every = {picture.path: picture for pictures in plan.values() for picture in pictures}
    drawn = {p.path: p for p in draw(list(every.values()), folder, f"draw {folder.name}", progress)}
    plan["coloured"] = capped_colours([drawn[p.path] for p in plan["coloured"]], 300 if split == "test" else 60)
    pool, lines, counts = pool_of(world, split), [], {}
    for benchmark in BENCHMARKS:
        own = lines_of(benchmark, plan, pool)
        (folder / f"{benchmark.name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in own))
        lines, counts[benchmark.name] = lines + own, len(own)
    remove_unused(folder, lines)
    return counts


def write_tokenizer(rows: dict[str, list[dict[str, Any]]], progress: Progress) -> int:
    """Trains the tokenizer on everything said in training."""
    from demo.tokenizer import train_tokenizer

    task = progress.add_task("train the tokenizer", total=1)
    # As the template has them: a space before what is said, none after a picture's line break.
    turns = [turn["value"] for source in SOURCES for row in rows[source] for turn in row["conversations"]]
    texts = [f" {value}".removeprefix(" <image>") for value in turns]
    entries = train_tokenizer(texts, FOLDER / "tokenizer")
    progress.advance(task)
    return entries


def pack_sources(progress: Progress) -> None:
    """Packs every source into indexed shards, a source to a process."""
    from preparation.workers import cores

    task = progress.add_task("pack shards", total=len(SOURCES))
    with multiprocessing.Pool(cores()) as pool:
        for _ in pool.imap_unordered(pack_source, SOURCES):
            progress.advance(task)


def pack_source(source: str) -> int:
    """Packs one source and returns its number of samples."""
    from mmmoe.data.pack import pack

    report = pack(
        FOLDER / source / "train.json",
        FOLDER / "images",
        FOLDER / "shards" / source,
        samples_per_shard=SAMPLES_PER_SHARD,
        domain=source,
    )
    return report.samples


if __name__ == "__main__":
    sys.exit(main())
