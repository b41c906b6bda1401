"""`mmmoe launch`: the commands for nodes, Slurm and torchrun, word by word, whatever a folder is called."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from remote_toy import make_ssh

from mmmoe.config.load import load
from mmmoe.paths import project_root
from mmmoe.stages import nodes as nodes_module
from mmmoe.stages.hostfile import Host, Launcher
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.nodes import Nodes
from mmmoe.stages.remote import READ_VARIABLES, as_input
from mmmoe.stages.sending import send, way_of
from mmmoe.stages.slurm import VARIABLES, Slurm
from mmmoe.stages.spec import RunSpec
from mmmoe.stages.torchrun import Torchrun

CONFIG = project_root() / "configs/llava_mole_tiny.yaml"
TWO = [Host("10.0.0.1", 2), Host("10.0.0.2", 4)]
HOSTILE = "runs/a b; touch HURT $(touch HURT) `touch HURT` 'x' %h"


@pytest.fixture
def with_pdsh(monkeypatch):
    monkeypatch.setattr(nodes_module.shutil, "which", lambda name: f"/usr/bin/{name}")


def remote_words(line):
    """Returns the words that a node's own shell makes of an ssh command."""
    command = shlex.split(line)
    assert command[0] == "ssh"
    *shell, script = shlex.split(command[-1])
    assert shell == ["exec", "sh", "-c"]
    return command, shlex.split(script.removeprefix(f"{READ_VARIABLES}; "))


def test_ssh_starts_each_nodes_share_of_the_processes(spec, tmp_path):
    variables, *lines = Nodes(TWO, Launcher.ssh).show(spec, tmp_path / "run", ["a.b=1"])
    assert {"OMP_NUM_THREADS=3", "HF_HUB_OFFLINE=1"} <= set(variables.split())
    for line, host, place in zip(lines, ("10.0.0.1", "10.0.0.2"), (["0", "2", "6"], ["2", "4", "6"]), strict=True):
        command, words = remote_words(line)
        assert command[-2] == host
        assert "BatchMode=yes" in command
        assert words[0] == "cd"
        begin = words.index(sys.executable)
        assert words[begin + 1 : begin + 5] == ["-m", "mmmoe.cli", "node", str(tmp_path / "run")]
        assert words[begin + 5 :] == [*place, "10.0.0.1", "29500", "a.b=1"]


@pytest.mark.usefixtures("with_pdsh")
def test_pdsh_is_deepspeeds_launcher_on_the_hostfile(spec, monkeypatch):
    folder = project_root() / "runs/plain"
    for name in [name for name in os.environ if name.startswith(("PYTHON", "NCCL", "GLOO", "UCX"))]:
        monkeypatch.delenv(name)
    shown = list(Nodes(TWO).show(spec, folder, []))
    words = shlex.split(shown[-1])
    begin = words.index("-m")
    assert words[begin + 1] == "deepspeed.launcher.runner"
    assert words[words.index("--hostfile") + 1] == str(folder / "hostfile")
    assert words[words.index("--master_addr") + 1] == "10.0.0.1"
    assert "--force_multi" in words
    assert words[-4:] == ["--module", "mmmoe.cli", "resume", str(folder)]
    assert "10.0.0.2 slots=4" in shown[0]
    assert "OMP_NUM_THREADS=3" in shown[1]


@pytest.mark.usefixtures("with_pdsh")
def test_words_that_pdsh_would_not_quote_go_by_ssh_and_are_refused_if_it_is_asked_for(spec, tmp_path):
    lines = list(Nodes(TWO).show(spec, tmp_path / HOSTILE, ["a={b: 1}"]))
    assert all(line.startswith("ssh ") for line in lines[1:])
    with pytest.raises(ValueError, match="pdsh cannot hand"):
        list(Nodes(TWO, Launcher.pdsh).show(spec, tmp_path / HOSTILE, []))


def test_a_hostile_folder_runs_nothing_on_a_node(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = list(Nodes(TWO, Launcher.ssh).show(spec, tmp_path / HOSTILE, [HOSTILE]))[1]
    (tmp_path / "say").write_text('#!/bin/sh\nprintf \'%s\\n\' "$@" "$ODD"\n')
    (tmp_path / "say").chmod(0o755)
    script = shlex.split(line)[-1].replace(sys.executable, str(tmp_path / "say"), 1)
    given = as_input({"ODD": HOSTILE})
    done = subprocess.run(["sh", "-c", script], input=given, capture_output=True, text=True, check=True)
    *said, odd = done.stdout.splitlines()
    assert odd == HOSTILE
    assert said[3] == str(tmp_path / HOSTILE)
    assert said[-1] == HOSTILE
    assert not (tmp_path / "HURT").exists()


def test_a_hostile_folder_runs_nothing_in_a_slurm_job(spec, tmp_path, monkeypatch):
    """The script itself, with an srun that only repeats its words and Slurm's variables of one task."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    for name, text in {"srun": "printf '%s\\n' \"$@\"; exit 75", "scontrol": 'echo scontrol "$@"'}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / HOSTILE).mkdir(parents=True)
    (tmp_path / HOSTILE / VARIABLES).touch()
    script = Slurm.of(["nodes=2"]).script(spec, tmp_path / HOSTILE, [HOSTILE])
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "SLURM_JOB_ID": "77"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 75, done.stderr
    said = done.stdout.splitlines()
    assert str(tmp_path / HOSTILE) in said
    assert HOSTILE in said
    assert said[-1] == "scontrol requeue 77"
    assert not (tmp_path / "HURT").exists()


@pytest.mark.parametrize(
    ("statuses", "expected", "is_requeued"),
    [("0", 0, False), ("2", 2, False), ("75", 75, True), ("137 137 0", 0, False), ("1 1 1", 1, False)],
)
def test_a_job_tries_again_only_what_may_help(spec, tmp_path, statuses, expected, is_requeued):
    (tmp_path / "left").write_text("\n".join(statuses.split()) + "\n")
    take = f"status=$(head -n 1 {tmp_path}/left); sed -i 1d {tmp_path}/left; exit $status"
    for name, text in {"srun": take, "scontrol": "echo requeued"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / VARIABLES).touch()
    script = Slurm.of(["nodes=2"]).script(spec, tmp_path, [])
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == expected, done.stderr
    assert ("requeued" in done.stdout) is is_requeued
    assert (tmp_path / "left").read_text() == ""


def test_a_job_that_was_stopped_by_its_file_is_not_queued_again(spec, tmp_path):
    (tmp_path / "stop").touch()
    for name, text in {"srun": "exit 75", "scontrol": "echo requeued"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    (tmp_path / VARIABLES).touch()
    script = Slurm.of(["nodes=2"]).script(spec, tmp_path, [])
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (75, "")


def test_the_number_of_processes_is_known_where_it_is_declared(spec):
    assert Nodes(TWO).world(spec) == 6
    assert Slurm.of(["nodes=4", "gpus-per-node=a100:8"]).world(spec) == 32
    assert Slurm.of(["nodes=2-4", "gpus-per-node=8"]).world(spec) is None
    assert Torchrun.of(["nnodes=2", "nproc-per-node=4"]).world(spec) == 8
    assert Torchrun.of(["nproc-per-node=gpu"]).world(spec) is None


@pytest.mark.usefixtures("sound")
def test_nodes_that_do_not_answer_are_all_told_before_a_folder_is_made(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    make_ssh(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    way = Nodes([Host("off", 1), Host("one", 1), Host("me@off", 1)], Launcher.ssh)
    with pytest.raises(ValueError, match="no answer by ssh from off, me@off: `mmmoe doctor"):
        send(CONFIG, [f"runs={tmp_path}/runs"], way, only_print=False)
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("sound")
def test_an_end_before_the_end_stands_in_the_ledger(tmp_path, monkeypatch):
    monkeypatch.setattr(Torchrun, "start", lambda self, spec, folder, overrides: 137)
    assert send(CONFIG, [f"runs={tmp_path}"], Torchrun.of(["nproc-per-node=2"]), only_print=False) == 137
    last = RunFolder.open(tmp_path / "llava_mole_tiny").events()[-1]
    assert (last["event"], last["status"]) == ("ended", 137)


@pytest.fixture
def with_secret(tmp_path, monkeypatch):
    """Declares a password for the nodes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".deepspeed_env").write_text("MY_PASSWORD=open-sesame\n")


@pytest.mark.usefixtures("with_secret")
@pytest.mark.parametrize("way", [Nodes(TWO, Launcher.ssh), Nodes(TWO, Launcher.pdsh), Slurm.of(["nodes=2"])])
def test_secrets_of_the_variables_are_not_shown(spec, way):
    shown = "\n".join(way.show(spec, project_root() / "runs/plain", []))
    assert "MY_PASSWORD=" in shown
    assert "open-sesame" not in shown


@pytest.mark.usefixtures("with_secret")
def test_secrets_reach_a_node_and_stand_in_no_command_line(spec, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    make_ssh(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(nodes_module.sys, "executable", str(tmp_path / "node"))
    (tmp_path / "node").write_text('#!/bin/sh\necho "$MY_PASSWORD" > got; cat > rest')
    (tmp_path / "node").chmod(0o755)
    attempt = nodes_module._Attempt(spec, tmp_path / "run", [], [Host("one", 1)], "10.0.0.1", 29500)
    (command,) = attempt.by_ssh()
    assert "open-sesame" not in " ".join(command)
    node = nodes_module._node("one", command, as_input(attempt.variables()).encode())
    node.ask()
    assert node.process.wait(20) == 0
    assert (tmp_path / "got").read_text() == "open-sesame\n"
    assert (tmp_path / "rest").read_text() == ""


@pytest.mark.usefixtures("with_secret", "sound")
def test_a_jobs_variables_are_for_their_owner_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("mmmoe.stages.slurm.shutil.which", lambda name: None)
    with pytest.raises(ValueError, match="sbatch is not here"):
        send(CONFIG, [f"runs={tmp_path}"], Slurm.of(["nodes=2"]), only_print=False)
    folder = tmp_path / "llava_mole_tiny"
    assert "open-sesame" not in (folder / "launch.sbatch").read_text()
    assert "export MY_PASSWORD=open-sesame\n" in (folder / VARIABLES).read_text()
    assert (folder / VARIABLES).stat().st_mode & 0o777 == 0o600


def test_one_way_must_be_chosen(tmp_path):
    with pytest.raises(ValueError, match="give one of --hostfile"):
        way_of(None, None, [], [])
    with pytest.raises(ValueError, match="--slurm and --torchrun are different ways; give one of them"):
        way_of(None, None, ["nodes=2"], ["nnodes=2"])
    with pytest.raises(ValueError, match="--launcher says how"):
        way_of(None, Launcher.ssh, ["nodes=2"], [])


@pytest.mark.usefixtures("sound")
def test_printing_touches_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert send(CONFIG, [f"runs={tmp_path}/runs"], Nodes(TWO, Launcher.ssh), only_print=True) == 0
    said = capsys.readouterr()
    assert f"{tmp_path}/runs/llava_mole_tiny" in said.out
    assert "nothing was made" in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("sound")
def test_a_configuration_gets_a_folder_and_a_folder_goes_on(tmp_path, monkeypatch):
    started = []

    def start(self, spec, folder, overrides):
        started.append((folder.path, overrides))
        return 0

    monkeypatch.setattr(Torchrun, "start", start)
    way = Torchrun.of(["nproc-per-node=2"])
    send(CONFIG, [f"runs={tmp_path}", "seed=7"], way, only_print=False)
    made = RunFolder.open(tmp_path / "llava_mole_tiny")
    assert made.spec().seed == 7
    send(made.path, ["seed=8"], way, only_print=False)
    assert started == [(made.path, []), (made.path, ["seed=8"])]
    assert [event["event"] for event in made.events()] == ["created", "launched", "launched"]
    with made.lock(), pytest.raises(ValueError, match="in use"):
        send(made.path, [], way, only_print=False)


@pytest.mark.usefixtures("sound")
def test_without_slurm_the_script_is_there_to_be_taken_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr("mmmoe.stages.slurm.shutil.which", lambda name: None)
    with pytest.raises(ValueError, match="sbatch is not here"):
        send(CONFIG, [f"runs={tmp_path}"], Slurm.of(["nodes=2"]), only_print=False)
    assert (tmp_path / "llava_mole_tiny/launch.sbatch").read_text().startswith("#!/bin/bash\n#SBATCH --job-name=")


def test_the_command_that_goes_on_is_that_of_the_last_start(tmp_path):
    folder = RunFolder.create(load(CONFIG, RunSpec), tmp_path / "run")
    for way, option in (
        (Nodes(TWO, Launcher.ssh, Path("my hosts")), "--hostfile 'my hosts' --launcher ssh"),
        (Slurm.of(["nodes=2", "exclusive"]), "--slurm nodes=2 --slurm exclusive"),
        (Torchrun.of(["nproc-per-node=2"]), "--torchrun nproc-per-node=2"),
    ):
        folder.record("launched", option=way.option)
        folder.record("resumed", overrides=["a=1"], by="launcher")
        assert folder.again() == f"mmmoe launch {folder.path} a=1 {option}"
    folder.record("launched", option="--torchrun nproc-per-node=2", overrides=["c=1"])
    assert folder.again() == f"mmmoe launch {folder.path} c=1 --torchrun nproc-per-node=2"
    folder.record("resumed", overrides=["b=1"], by="resume")
    assert folder.again() == f"mmmoe resume {folder.path} b=1"
