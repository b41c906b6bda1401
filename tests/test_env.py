"""What a process reads from the variables of its launcher, and what is handed on to other nodes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmmoe import env

SRUN = {
    "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "2",
}  # fmt: skip


def test_a_task_of_srun_knows_its_place():
    environment = dict(SRUN)
    env.adopt_slurm(environment)
    assert (environment["RANK"], environment["LOCAL_RANK"], environment["WORLD_SIZE"]) == ("5", "1", "8")
    assert environment["MASTER_ADDR"] == "gpu03"
    assert 20000 <= int(environment["MASTER_PORT"]) < 40000


def test_all_tasks_of_a_step_meet_at_one_port_and_those_of_another_step_elsewhere():
    ports = []
    for change in ({"SLURM_PROCID": "0"}, {"SLURM_PROCID": "7"}, {"SLURM_STEP_ID": "3"}):
        environment = SRUN | change
        env.adopt_slurm(environment)
        ports.append(environment["MASTER_PORT"])
    assert ports[0] == ports[1] != ports[2]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_JOB_ID": "77"},  # the batch script itself
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},  # an interactive shell
        SRUN | {"RANK": "0", "WORLD_SIZE": "2"},  # torchrun within srun
    ],
)
def test_others_are_left_as_they_are(environment):
    before = dict(environment)
    env.adopt_slurm(environment)
    assert environment == before


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[03-05,9],cpu1", "gpu03"), ("cpu1,gpu[3-4]", "cpu1"), ("a[1,5]b", "a1b"), ("one", "one"), ("n[07]", "n07")],
)
def test_the_first_node_of_a_short_form(nodes, first):
    environment = SRUN | {"SLURM_STEP_NODELIST": nodes}
    env.adopt_slurm(environment)
    assert environment["MASTER_ADDR"] == first


def test_an_address_that_is_set_stays():
    environment = SRUN | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "9"}
    env.adopt_slurm(environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.1", "9")


def test_secrets_are_not_handed_on(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("PYTHONPATH", "NCCL_DEBUG", "HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "x")
    (tmp_path / ".deepspeed_env").write_text("MINE=1=2\n\n# no variable\n#OFF=1\n export YOURS=a b \n")
    handed = env.handed_on(3)
    assert handed["PYTHONPATH"] == handed["NCCL_DEBUG"] == "x"
    assert handed["OMP_NUM_THREADS"] == "3"
    assert (handed["MINE"], handed["YOURS"]) == ("1=2", "a b")
    assert not [name for name in handed if name.endswith("OFF") or "export" in name]
    assert not {"HF_TOKEN", "WANDB_API_KEY", "HOME"} & handed.keys()


def test_a_command_that_starts_others_does_not_wait_for_torch():
    code = "import sys, mmmoe.cli, mmmoe.stages.start; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
