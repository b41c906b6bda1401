"""What a process reads from the variables of its launcher, and what is handed on to other nodes."""

from __future__ import annotations

import pytest
import torch.distributed as torch_dist

from mmmoe import dist

SRUN = {
    "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "2",
}  # fmt: skip


def test_a_task_of_srun_knows_its_place():
    environment = dict(SRUN)
    dist.adopt_slurm(environment)
    assert (environment["RANK"], environment["LOCAL_RANK"], environment["WORLD_SIZE"]) == ("5", "1", "8")
    assert environment["MASTER_ADDR"] == "gpu03"
    assert 20000 <= int(environment["MASTER_PORT"]) < 40000


def test_all_tasks_of_a_step_meet_at_one_port_and_those_of_another_step_elsewhere():
    ports = []
    for change in ({"SLURM_PROCID": "0"}, {"SLURM_PROCID": "7"}, {"SLURM_STEP_ID": "3"}):
        environment = SRUN | change
        dist.adopt_slurm(environment)
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
    dist.adopt_slurm(environment)
    assert environment == before


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[03-05,9],cpu1", "gpu03"), ("cpu1,gpu[3-4]", "cpu1"), ("a[1,5]b", "a1b"), ("one", "one"), ("n[07]", "n07")],
)
def test_the_first_node_of_a_short_form(nodes, first):
    environment = SRUN | {"SLURM_STEP_NODELIST": nodes}
    dist.adopt_slurm(environment)
    assert environment["MASTER_ADDR"] == first


def test_an_address_that_is_set_stays():
    environment = SRUN | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "9"}
    dist.adopt_slurm(environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.1", "9")


def test_secrets_are_not_handed_on(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("PYTHONPATH", "NCCL_DEBUG", "HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "x")
    (tmp_path / ".deepspeed_env").write_text("MINE=1=2\n\n# no variable\n#OFF=1\n export YOURS=a b \n")
    handed = dist.handed_on(3)
    assert handed["PYTHONPATH"] == handed["NCCL_DEBUG"] == "x"
    assert handed["OMP_NUM_THREADS"] == "3"
    assert (handed["MINE"], handed["YOURS"]) == ("1=2", "a b")
    assert not [name for name in handed if name.endswith("OFF") or "export" in name]
    assert not {"HF_TOKEN", "WANDB_API_KEY", "HOME"} & handed.keys()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:41"),
        RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:89] Timed out waiting 1800000ms for recv operation"),
        torch_dist.DistBackendError("NCCL communicator was aborted"),
    ],
)
def test_a_collective_that_lost_a_process_is_known(error):
    assert dist.lost_peer(error)


def test_other_errors_are_no_lost_process():
    assert not dist.lost_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_gloo_is_told_the_interface_of_an_address(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    dist._name_interface("127.0.0.1")
    dist._name_interface("no.such.host.invalid")
    assert "GLOO_SOCKET_IFNAME" not in dist.os.environ
    own = [
        (name, entry.address)
        for name, entries in dist.psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == dist.socket.AF_INET and not entry.address.startswith("127.")
    ]
    if own:
        dist._name_interface(own[0][1])
        assert dist.os.environ["GLOO_SOCKET_IFNAME"] == own[0][0]
        monkeypatch.delenv("GLOO_SOCKET_IFNAME")


@pytest.fixture
def first_of_two(monkeypatch):
    """Makes this process the first of a run whose other process never comes."""
    for name, value in dist.place_variables(0, 0, 2, "127.0.0.1", dist.free_port()).items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("first_of_two")
def test_a_process_that_nobody_joins_ends_and_says_where_it_waited():
    began = dist.time.monotonic()
    with pytest.raises(torch_dist.DistStoreError, match=r"2 processes were to meet at .*, but not all came"):
        dist.start(join_s=1)
    assert dist.time.monotonic() - began < 20


@pytest.mark.usefixtures("first_of_two")
def test_a_port_that_is_taken_is_a_mistake_to_correct(monkeypatch):
    with dist.socket.create_server(("", 0)) as taken:
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(ValueError, match=r"another program has taken; give another: engine.port=N"):
            dist.start(join_s=1)
