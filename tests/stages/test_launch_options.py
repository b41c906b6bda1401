"""Options of sbatch and torchrun, given to `mmmoe launch`: what they become, and what is told of wrong ones."""

from __future__ import annotations

import pytest

from mmmoe.config.load import load
from mmmoe.paths import project_root
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.sending import send
from mmmoe.stages.slurm import Slurm
from mmmoe.stages.spec import RunSpec
from mmmoe.stages.torchrun import Torchrun

CONFIG = project_root() / "configs/llava_mole_tiny.yaml"


def test_slurm_has_a_task_for_each_gpu(spec, tmp_path):
    def lines(*options):
        return Slurm.of(list(options)).script(spec, tmp_path, []).splitlines()

    script = lines("nodes=4", "gpus-per-node=8", "time=24:00:00", "exclusive")
    for line in (
        "--nodes=4",
        "--ntasks-per-node=8",
        "--time=24:00:00",
        "--exclusive",
        "--signal=TERM@120",
        "--requeue",
    ):
        assert f"#SBATCH {line}" in script
    assert f"#SBATCH --ntasks-per-node={spec.engine.processes}" in lines("nodes=2")
    assert "#SBATCH --ntasks-per-node=4" in lines("gres=gpu:a100:4")
    assert not [line for line in lines("ntasks=6") if "ntasks-per-node" in line]
    assert "#SBATCH --signal=USR1@60" in lines("signal=USR1@60")


def test_torchrun_gets_its_options_and_is_never_asked_to_restart(spec, tmp_path):
    command = Torchrun.of(["nnodes=2", "rdzv-endpoint=10.0.0.1:29500"]).command(tmp_path, ["a=b c"])
    assert command[1:3] == ["-m", "torch.distributed.run"]
    assert {"--nnodes=2", "--rdzv-endpoint=10.0.0.1:29500"} <= set(command)
    assert not [word for word in command if "restarts" in word]
    assert command[-5:] == ["-m", "mmmoe.cli", "resume", str(tmp_path), "a=b c"]


@pytest.mark.usefixtures("sound")
@pytest.mark.parametrize(
    ("words", "overrides", "said"),
    [
        (["nproc-per-node=2"], ["engine.restarts=1"], "set engine.restarts=0"),
        (["nproc-per-node=2", "max-restarts=3"], [], "leave max-restarts out"),
        (["nnodes=2"], [], r"nnodes=2: the command is given on every node"),
        (["nnodes=1:4"], [], r"nnodes=1:4: the command is given on every node"),
    ],
)
def test_what_torchrun_cannot_do_is_told_before_a_folder_is_made(tmp_path, words, overrides, said):
    with pytest.raises(ValueError, match=said):
        send(CONFIG, [f"runs={tmp_path}", *overrides], Torchrun.of(words), only_print=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nproc-per-nod=2", "nodez=3"], "--torchrun: .*nodez=3; see `torchrun --help`"),
        (["nproc-per-node=many"], "--torchrun nproc-per-node=many: is no number"),
        (["nnodes=two"], "--torchrun nnodes=two: is no number"),
        (["monitor-interval=x"], "--torchrun: .*monitor-interval.*'x'"),
        (["nproc-per-node=2", "standalone=yes"], "--torchrun: .*standalone.*'yes'"),
    ],
)
def test_torchrun_is_asked_whether_it_takes_its_options(spec, tmp_path, words, said):
    with pytest.raises(ValueError, match=said):
        Torchrun.of(words).check(spec, tmp_path, [], is_new=False)


@pytest.mark.parametrize("words", [["nproc-per-node=gpu"], ["nnodes=1:4", "standalone"], ["rdzv-endpoint=a:29500"]])
def test_torchruns_own_options_are_taken(tmp_path, words):
    Torchrun.of(words).check(load(CONFIG, RunSpec), tmp_path, [], is_new=False)


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """Puts an sbatch first on PATH that knows two options."""
    (tmp_path / "bin").mkdir()
    text = """for word in "$@"; do case $word in
    --nodes=*|--help|launch.sbatch) ;;
    --partition) echo "sbatch: error: Batch script is empty!" >&2; exit 1 ;;
    *) echo "sbatch: unrecognized option '$word'" >&2; echo 'Try "sbatch --help"' >&2; exit 255 ;;
    esac; done
    [ "$1" != launch.sbatch ] || { echo "sbatch: error: no such partition" >&2; exit 1; }"""
    (tmp_path / "bin/sbatch").write_text(f"#!/bin/sh\n{text}\n")
    (tmp_path / "bin/sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")


@pytest.mark.usefixtures("sound", "sbatch")
def test_sbatch_is_asked_whether_it_takes_its_options_before_a_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match="--slurm partition: needs a value"):
        Slurm.of(["partition"]).check(load(CONFIG, RunSpec), tmp_path, [], is_new=True)
    with pytest.raises(ValueError, match="--slurm nodez=2: unrecognized option '--nodez=2'"):
        send(CONFIG, [f"runs={tmp_path}/runs"], Slurm.of(["nodez=2"]), only_print=False)
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("sound", "sbatch")
def test_a_folder_that_was_made_for_nothing_is_told_with_the_way_on(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"launch\.sbatch was not submitted: no such partition\nthe run's folder is there; go on with:",
    ):
        send(CONFIG, [f"runs={tmp_path}/runs"], Slurm.of(["nodes=2"]), only_print=False)
    assert (tmp_path / "runs/llava_mole_tiny/launch.sbatch").is_file()


@pytest.mark.usefixtures("sound")
def test_several_nodes_of_torchrun_go_on_with_one_folder(tmp_path, monkeypatch):
    folder = RunFolder.create(load(CONFIG, RunSpec), tmp_path / "run")
    monkeypatch.setattr(Torchrun, "start", lambda self, spec, folder, overrides: 1)
    assert send(folder.path, [], Torchrun.of(["nnodes=2"]), only_print=False) == 1
    assert folder.again() == f"mmmoe launch {folder.path} --torchrun nnodes=2"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--nodes=4"], "without dashes"),
        (["nodes=4", "nodes=5"], "given twice"),
        (["comment=a b"], "do not fit into #SBATCH lines"),
        (["comment=a\nsrun x"], "do not fit into #SBATCH lines"),
    ],
)
def test_options_that_are_none_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Slurm.of(options)


@pytest.mark.usefixtures("sound")
def test_an_sbatch_without_slurm_is_as_good_as_none(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    text = "echo 'sbatch: error: no host' >&2; echo 'sbatch: fatal: no source' >&2; exit 1"
    (tmp_path / "bin/sbatch").write_text(f"#!/bin/sh\n{text}\n")
    (tmp_path / "bin/sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(ValueError, match=r"sbatch finds no Slurm here \(no source\); submit the script where it works"):
        send(CONFIG, [f"runs={tmp_path}/runs"], Slurm.of(["nodes=2"]), only_print=False)
    assert (tmp_path / "runs/llava_mole_tiny/launch.sbatch").is_file()


@pytest.mark.parametrize(
    ("way", "words", "said"),
    [
        (Slurm, ["test-only"], "--slurm test-only: with it something else than the run is started"),
        (Slurm, ["nodes=0"], "--slurm nodes=0: a run needs at least 1"),
        (Torchrun, ["no-python"], "--torchrun no-python: with it something else"),
        (Torchrun, ["help"], "--torchrun help: with it something else"),
    ],
)
def test_options_that_start_no_run_are_refused(way, words, said):
    with pytest.raises(ValueError, match=said):
        way.of(words)
