"""How processes come together, and how one knows that another is gone."""

from __future__ import annotations

import os
import socket
import time

import psutil
import pytest
import torch.distributed as torch_dist

from mmmoe import dist, env


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
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    own = [
        (name, entry.address)
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET and not entry.address.startswith("127.")
    ]
    if own:
        dist._name_interface(own[0][1])
        assert os.environ["GLOO_SOCKET_IFNAME"] == own[0][0]
        monkeypatch.delenv("GLOO_SOCKET_IFNAME")


@pytest.fixture
def first_of_two(monkeypatch):
    """Makes this process the first of a run whose other process never comes."""
    for name, value in env.place_variables(0, 0, 2, "127.0.0.1", env.free_port()).items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("first_of_two")
def test_a_process_that_nobody_joins_ends_and_says_where_it_waited():
    began = time.monotonic()
    with pytest.raises(torch_dist.DistStoreError, match=r"2 processes were to meet at .*, but not all came"):
        dist.start(join_s=1)
    assert time.monotonic() - began < 20


@pytest.mark.usefixtures("first_of_two")
def test_a_port_that_is_taken_is_a_mistake_to_correct(monkeypatch):
    with socket.create_server(("", 0)) as taken:
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(ValueError, match=r"another program has taken; give another: engine.port=N"):
            dist.start(join_s=1)
