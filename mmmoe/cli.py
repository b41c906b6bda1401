"""The command line: verbs, a configuration file and `key=value`; nothing else."""

from __future__ import annotations

import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mmmoe import cli_nodes, env
from mmmoe.cli_errors import guarded
from mmmoe.cli_nodes import Folder, Overrides
from mmmoe.config.load import dump, load
from mmmoe.log import console
from mmmoe.stages.spec import RunSpec
from mmmoe.stages.status import USER_MISTAKE


class Voice(StrEnum):
    """The kinds of media that Uni-MoE's field `voice` may mean."""

    audio = "audio"
    speech = "speech"


app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
data_app = typer.Typer(no_args_is_help=True, help="Shards: pack, check, preview, route. Other kits: lmms, vlmeval.")
config_app = typer.Typer(no_args_is_help=True, help="Configurations: check, show, schema.")
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")
for verb in (cli_nodes.node, cli_nodes.probe, cli_nodes.meet):
    app.command(hidden=True)(verb)

Config = Annotated[Path, typer.Argument(help="a file in configs/")]


@app.command()
def run(config: Config, overrides: Overrides = None) -> None:
    """Train every stage, evaluate, report. Makes a new run folder."""
    from mmmoe.stages.preflight import preflight
    from mmmoe.stages.start import start_new

    spec = load(config, RunSpec, overrides)
    preflight(spec)
    raise typer.Exit(start_new(spec))


@app.command()
def resume(folder: Folder, overrides: Overrides = None) -> None:
    """Go on where a run stopped: no finished stage is repeated, no step lost after its checkpoint."""
    from mmmoe.stages.start import start_again

    raise typer.Exit(start_again(folder, overrides or []))


app.command()(cli_nodes.launch)


@app.command(hidden=True)
def work(folder: Folder, overrides: Overrides = None) -> None:
    """One process of a new run; started by run."""
    from mmmoe.stages.ledger import RunFolder
    from mmmoe.stages.run import run_all

    run_folder = RunFolder.open(folder)
    run_all(run_folder.spec(overrides), run_folder)


@app.command(hidden=True)
def work_on(folder: Folder, overrides: Overrides = None) -> None:
    """One process of a run that goes on; started by resume. It looks first whether the run can work."""
    from mmmoe.stages.ledger import RunFolder
    from mmmoe.stages.preflight import preflight

    preflight(RunFolder.open(folder).spec(overrides))
    work(folder, overrides)


@app.command()
def plan(config: Config, overrides: Overrides = None) -> None:
    """Print what a run would do, its parameter table and what is missing; reads no weights."""
    from mmmoe.stages.plan import print_plan

    print_plan(load(config, RunSpec, overrides))


@app.command(name="eval")
def evaluate(folder: Folder, overrides: Overrides = None) -> None:
    """Evaluate a run, or one finished stage's folder, by its `evaluation` or `suite=FILE`, with overrides."""
    from mmmoe.stages.evaluate import evaluate_again

    evaluate_again(folder, overrides or [])


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="a run folder, or an evaluation's")],
    second: Annotated[Path, typer.Argument(help="another")],
    benchmarks: Annotated[list[str] | None, typer.Argument(help="names of benchmarks; all that both have")] = None,
) -> None:
    """Compare two evaluated runs question by question: difference, interval, p, and where they part."""
    from mmmoe.evaluation.compare import compare as compare_evaluations
    from mmmoe.evaluation.compare import comparison_table

    rows = compare_evaluations(first, second, benchmarks or [])
    console.print(comparison_table(rows, first.name, second.name))


@app.command()
def generate(
    folder: Annotated[Path, typer.Argument(help="a run folder, or a finished stage's")],
    prompt: Annotated[str, typer.Argument(help="what is to be drawn")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="image=FILE out=FOLDER count=4 seed=42 steps=N guidance=W")
    ] = None,
) -> None:
    """Draw pictures from a prompt, or edit one, with a model that draws (TextHarmony)."""
    from mmmoe.stages.generate import generate as generate_pictures

    for path in generate_pictures(folder, prompt, settings or []):
        console.print(str(path), soft_wrap=True)


@app.command()
def report(
    folder: Folder,
    benches: Annotated[list[Path] | None, typer.Argument(help="files of `mmmoe bench vision_experts --json`")] = None,
) -> None:
    """Write the offline HTML report and the plots of a run."""
    from mmmoe.report.page import write_report

    console.print(f"report: {write_report(folder, benches or [])}", soft_wrap=True)


@app.command()
def ui(
    folder: Annotated[Path, typer.Argument(help="a run folder, or the folder of runs")] = Path("runs"),
    settings: Annotated[list[str] | None, typer.Argument(help="port=N; 0 takes a free one")] = None,
) -> None:
    """Show reports in a browser, up to date while a run goes on: read only, for this machine alone."""
    from mmmoe.report.serve import PORT, ReportServer

    given = dict(setting.partition("=")[::2] for setting in settings or [])
    port = given.pop("port", str(PORT))
    if given or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"mmmoe ui takes port=N (0 to 65535) and nothing else, got {' '.join(settings or [])}")
    with ReportServer(folder, int(port)) as server:
        console.print(f"{server.address} shows the runs in {server.folder}; Ctrl-C ends it", soft_wrap=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


@app.command()
def experiment(config: Config, overrides: Overrides = None) -> None:
    """Run the variants of an experiment one after the other and print their table."""
    from mmmoe.stages.experiment import ExperimentSpec, run_experiment

    raise typer.Exit(run_experiment(load(config, ExperimentSpec, overrides)))


@app.command()
def bench(
    name: Annotated[
        str,
        typer.Argument(help="step, lora, mov_adapter, vision_experts, evaluation, checkpoint, an op (`kernels`: all)"),
    ] = "step",
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            help="sizes; for step, vision_experts and checkpoint config=FILE and overrides; for evaluation run=RUN"
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="write the results to this file or folder, and a plot beside them")
    ] = None,
    check: Annotated[bool, typer.Option(help="a line for every bound; exit status 1 if one is missed")] = False,
) -> None:
    """Time a step with experts, layers of experts, the MoV-Adapter, vision experts, answers, checkpoints or the ops."""
    from mmmoe.kernels.bench import measure, parse_sizes, publish

    given, draw = settings or [], None
    if name == "mov_adapter":
        from mmmoe.stages.bench_mov_adapter import bench_mov_adapter

        results = bench_mov_adapter(parse_sizes(given))
    elif name == "vision_experts":
        from mmmoe.stages.bench_vision_experts import bench_vision_experts, picture

        results, draw = bench_vision_experts(given), picture
    elif name == "evaluation":
        from mmmoe.stages.bench_evaluation import bench_evaluation

        results = bench_evaluation(given)
    elif name == "checkpoint":
        from mmmoe.stages.bench_checkpoint import bench_checkpoint

        results = bench_checkpoint(given)
    elif name not in ("step", "lora"):
        results = measure(name, parse_sizes(given))
    else:
        from mmmoe.stages.bench import bench_step

        files = [setting.partition("=")[2] for setting in given if setting.startswith("config=")]
        rest = [setting for setting in given if not setting.startswith("config=")]
        config = Path(files[-1] if files else "configs/llava_mole_tiny.yaml")
        spec = load(config, RunSpec, rest if name == "step" else [])  # a mistake in it is told before minutes pass
        results = [*(measure(name, parse_sizes(rest)) if name == "lora" else []), *bench_step(spec)]
    raise typer.Exit(0 if publish(name, results, json, check=check, draw=draw) else 1)


@app.command()
def doctor(
    hostfile: Annotated[Path | None, typer.Option(help="nodes, a line `host slots=N` each, to be looked at")] = None,
) -> None:
    """Say what this machine, or each node of a hostfile, has, what is missing and what to do about it."""
    from mmmoe.stages.hostfile import read_hostfile

    hosts = None if hostfile is None else read_hostfile(hostfile)  # before what follows, which loads torch
    from mmmoe.stages.doctor import findings, print_findings
    from mmmoe.stages.doctor_nodes import node_findings

    found = findings() if hosts is None else node_findings(hosts)
    raise typer.Exit(0 if print_findings(found) else USER_MISTAKE)


@app.command()
def cache(
    words: Annotated[list[str] | None, typer.Argument(metavar="[FOLDER] [prune GB]", help="data/local/cache")] = None,
) -> None:
    """List what a cache holds by size and last use; `prune 20` deletes the oldest of it until 20 GB are left."""
    from mmmoe.stages.cache_content import list_or_prune

    list_or_prune(words or [])


@data_app.command()
def pack(
    json: Annotated[Path, typer.Argument(help="LLaVA JSON: a list of samples")],
    media: Annotated[Path, typer.Argument(help="folder the paths of images, videos and sounds are relative to")],
    out: Annotated[Path, typer.Argument(help="folder for the shards")],
    samples: Annotated[int, typer.Argument(help="samples a shard")] = 1000,
    domain: Annotated[str, typer.Argument(help="domain tag")] = "general",
    workers: Annotated[int, typer.Argument(help="processes")] = 1,
    voice: Annotated[Voice, typer.Argument(help="what Uni-MoE's field `voice` holds")] = Voice.audio,
) -> None:
    """Write WebDataset shards with their index; a shard that is already there and sound is kept."""
    from mmmoe.data.media import in_words
    from mmmoe.data.pack import pack as pack_shards

    report = pack_shards(json, media, out, samples_per_shard=samples, domain=domain, workers=workers, voice=voice.value)
    kept = f", {report.kept} of them there already" if report.kept else ""
    console.print(
        f"{report.samples:,} samples with {in_words(report.items)} ({report.bytes:,} bytes) in "
        f"{len(report.shards)} shards in {out}{kept}"
    )


@data_app.command()
def check(shards: Annotated[str, typer.Argument(help="folder or glob of shards")]) -> None:
    """Compare every shard with its hash and decode every image, video and sound."""
    from mmmoe.data.check import check as check_shards
    from mmmoe.data.media import in_words

    found = check_shards(shards)
    for problem in found.problems:
        console.print(f"{problem.shard} {problem.key}: {problem.reason}")
    console.print(
        f"{found.shards} shards, {found.samples:,} samples, {in_words(found.items)}, {found.bytes:,} bytes: "
        + ("sound" if found.is_sound else f"{len(found.problems)} problems; pack these shards again")
    )
    raise typer.Exit(0 if found.is_sound else USER_MISTAKE)


@data_app.command()
def preview(
    shards: Annotated[str, typer.Argument(help="folder or glob of shards")],
    samples: Annotated[int, typer.Argument(help="how many")] = 5,
) -> None:
    """Show the first samples of a set of shards."""
    from mmmoe.data.preview import preview as preview_shards

    console.print(preview_shards(shards, samples))


@data_app.command()
def route(
    shards: Annotated[str, typer.Argument(help="folder or glob of shards")],
    out: Annotated[Path, typer.Argument(help="folder for the labelled shards")],
    judges: Annotated[
        list[str], typer.Argument(metavar="BASE EXPERT=FINAL ... | FINAL", help="folders of finished stages")
    ],
) -> None:
    """Write shards with MoVA's routing labels: the experts whose model answers a sample better than the base.

    BASE and each FINAL are finished stages (<run>/stages/<stage>/final) of models that take images: one with the base
    tower, one an expert with its tower. Or one finished stage of a MoVA: each of its experts alone against none.
    Losses are kept in the run's cache; what was stopped goes on. Works under torchrun.
    """
    from mmmoe.stages.route import route as route_shards

    route_shards(shards, out, judges)


@data_app.command()
def lmms(
    suite: Annotated[Path, typer.Argument(help="a file in configs/evaluation/")],
    out: Annotated[Path, typer.Argument(help="folder for the task files; lmms-eval's --include_path")],
) -> None:
    """Write task files with which lmms-eval asks a suite's questions, from local files."""
    from mmmoe.bridges.lmms_tasks import write_tasks
    from mmmoe.evaluation.spec import EvaluationSpec

    console.print(f"{out}: {', '.join(write_tasks(load(suite, EvaluationSpec), out))}", soft_wrap=True)


@data_app.command()
def vlmeval(
    answers: Annotated[Path, typer.Argument(help="answers of one variant, e.g. runs/NAME/evaluation/trained")],
    out: Annotated[Path, typer.Argument(help="folder for the files; its name is the model's")],
) -> None:
    """Write the answers of an evaluation as VLMEvalKit's prediction files."""
    from mmmoe.bridges.vlmeval import write_predictions

    for path in write_predictions(answers, out):
        console.print(str(path), soft_wrap=True)


@config_app.command(name="check")
def check_config(config: Config, overrides: Overrides = None) -> None:
    """Read a configuration and everything it names; list all that is wrong."""
    from mmmoe.stages.preflight import preflight

    preflight(load(config, RunSpec, overrides))
    console.print(f"{config}: sound")


@config_app.command()
def show(config: Config, overrides: Overrides = None) -> None:
    """Print a configuration with includes, overrides and defaults resolved."""
    sys.stdout.write(dump(load(config, RunSpec, overrides)))


@config_app.command()
def schema() -> None:
    """Print the JSON schema of a run's configuration, for editors."""
    import json

    sys.stdout.write(json.dumps(RunSpec.model_json_schema(), indent=1) + "\n")


def main() -> None:
    """Entry point of the `mmmoe` command."""
    # DeepSpeed's launcher puts this before everything else; the environment says the same.
    sys.argv[1:] = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank=")]
    env.adopt_slurm()
    sys.exit(guarded(app))


if __name__ == "__main__":
    main()
