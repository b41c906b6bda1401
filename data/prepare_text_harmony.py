"""Makes the data of a small TextHarmony run: words to read, to write and to fill in, in data/local/text_harmony.

Run it as `python data/prepare_text_harmony.py`, after data/prepare_demo.py, whose words and fonts are used, and
data/prepare_mova.py, whose recogniser is the judge of what was written and, cut, the tower. A second run finds the
manifest, checks the hashes and ends at once.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from preparation.entry import carry_out
from preparation.manifest import Manifest, code_digest, sha256, wheel_versions
from preparation.progress import bars
from rich.console import Console
from rich.progress import Progress

SCRIPT = Path(__file__).resolve()
LOCAL = SCRIPT.parent / "local"
FOLDER, WORDS, NETWORKS = LOCAL / "text_harmony", LOCAL / "demo" / "packages", LOCAL / "mova" / "packages"
READER, INNER = NETWORKS / "rapidocr" / "PP-OCRv6_rec_small.onnx", LOCAL / "mova" / "experts" / "reader.onnx"
MADE = ("shards", "benchmarks", "tokenizer", "judge", "tower")
CODE = ("writing", "demo", "mova", "preparation")
WHEELS = ("pillow", "tokenizers", "matplotlib")
SAMPLES_PER_SHARD = 1024
TOKENS = 640
TRAIN = {
    "read": 2500,
    "four": 1000,
    "colour": 1200,
    "place": 1800,
    "reread": 1000,
    "write": 2000,
    "rewrite": 1500,
    "edit": 1500,
    "segment": 500,
}
TEST = {
    "read": 300,
    "four": 200,
    "colour": 200,
    "place": 200,
    "reread": 150,
    "write": 150,
    "rewrite": 150,
    "edit": 150,
    "segment": 50,
}
LONGEST = 5
"""Letters of a word at most."""
LEFT_OUT = frozenset({"jew"})
"""Words that pictures need not show."""
console = Console(stderr=True)


def main() -> int:
    """Prepares the data if it is not there, and returns the exit code."""
    return carry_out("TextHarmony's data", FOLDER, manifest_of, prepare, console)


def manifest_of() -> Manifest:
    """Returns the manifest as this code and these packages would make it.

    Raises:
        ValueError: The data of the demo or of MoVA is missing.
    """
    needed = (
        ("words and fonts", WORDS, "prepare_demo.py"),
        ("a reader", READER, "prepare_mova.py"),
        ("its first part", INNER, "prepare_mova.py"),
    )
    for what, there, script in needed:
        if not there.exists():
            raise ValueError(f"no {there}, which has {what} for these pictures: run data/{script} first")
    found = {**wheel_versions(WHEELS, "pip install 'mmmoe[demo]'"), "reader": sha256(READER), "inner": sha256(INNER)}
    return Manifest(FOLDER, MADE, {**found, "code": code_digest(SCRIPT, CODE)})


def prepare() -> dict[str, Any]:
    """Runs every step and returns the counts."""
    from demo.plan import load_world
    from writing.tower import write_tower

    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "judge").mkdir(parents=True)
    shutil.copyfile(READER, FOLDER / "judge" / "reader.onnx")
    write_tower(INNER, FOLDER / "tower" / "reader.onnx")
    with bars(console) as progress:
        words = load_world(WORDS).words
        short = {split: fitting(words[split]) for split in ("train", "test")}
        counts = write_training(short["train"], progress)
        counts["benchmarks"] = write_benchmarks(short["test"], progress)
        counts["words"] = {split: len(found) for split, found in short.items()}
        counts["tokenizer"] = write_tokenizer(progress)
        pack_sources(progress)
    shutil.rmtree(FOLDER / "pictures")  # the shards hold copies
    return counts


def fitting(words: list[str]) -> list[str]:
    """Returns the words that pictures show."""
    return [word for word in words if len(word) <= LONGEST and word not in LEFT_OUT]


def cards(task: str, words: list[str], number: int, split: str) -> list[Any]:
    """Returns the pictures of a task, not drawn yet."""
    from writing.cards import pages, strips

    return (pages if task == "place" else strips)(words, number, f"{split}-{task}", WORDS)


def write_training(words: list[str], progress: Progress) -> dict[str, Any]:
    """Draws the training pictures, writes every task's dialogues and returns how many there are."""
    from writing.dialogues import said

    pictures = FOLDER / "pictures"
    pictures.mkdir(parents=True)

    def save(picture: Any, name: str) -> str:
        picture.save(pictures / name)
        return name

    step = progress.add_task("draw pictures", total=sum(TRAIN.values()))
    for task, number in TRAIN.items():
        rows = []
        for place, dialogue in enumerate(said(task, cards(task, words, number, "train"), words, "train")):
            rows.append(dialogue.row(f"{task}-{place:05d}", save))
            progress.advance(step)
        (FOLDER / f"{task}.json").write_text(json.dumps(rows, indent=0))
    return dict(TRAIN)


def write_benchmarks(words: list[str], progress: Progress) -> dict[str, int]:
    """Writes the questions about words that were in no training picture."""
    from writing.benchmarks import write_benchmark
    from writing.dialogues import said

    step, counts = progress.add_task("draw held-out words", total=len(TEST)), {}
    for task, number in TEST.items():
        asked = list(said(task, cards(task, words, number, "test"), words, "test"))
        counts[task] = write_benchmark(task, asked, FOLDER / "benchmarks")
        progress.advance(step)
    return counts


def write_tokenizer(progress: Progress) -> int:
    """Trains the tokenizer on everything said in training: phrases become tokens, capitals stay letters."""
    from demo.tokenizer import train_tokenizer

    step = progress.add_task("train the tokenizer", total=1)
    rows = [row for task in TRAIN for row in json.loads((FOLDER / f"{task}.json").read_text())]
    turns = [turn["value"].removeprefix("<image>\n") for row in rows for turn in row["conversations"]]
    entries = train_tokenizer([f" {said}" for said in turns if said != "<image>"], FOLDER / "tokenizer", TOKENS)
    progress.advance(step)
    return entries


def pack_sources(progress: Progress) -> None:
    """Packs every task into indexed shards."""
    from mmmoe.data.pack import pack

    step = progress.add_task("pack shards", total=len(TRAIN))
    for task in TRAIN:
        pack(
            FOLDER / f"{task}.json",
            FOLDER / "pictures",
            FOLDER / "shards" / task,
            samples_per_shard=SAMPLES_PER_SHARD,
            domain=task,
        )
        progress.advance(step)


if __name__ == "__main__":
    sys.exit(main())
