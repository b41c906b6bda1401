"""Slurm over the nodes of a test's cluster: a controller on the first, a daemon on each."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nodes import Node
from nodes import missing as no_nodes

NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo", "squeue")


def missing() -> str:
    """Returns what this machine lacks, in words; empty if nothing."""
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    return no_nodes() or (f"not installed: {', '.join(lacking)} (Debian: slurm-wlm)" if lacking else "")


@dataclass(frozen=True)
class Queue:
    """A Slurm that is up."""

    nodes: list[Node]
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What its commands need to know."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *command: object) -> str:
        """Returns what a command says on the first node."""
        env = {**os.environ, **self.environment}
        done = subprocess.run(self.nodes[0].command(command), capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def story(self) -> str:
        """Returns all that helps to see why a job does not go on."""
        asked = []
        for what in ("jobs", "nodes"):
            try:
                asked.append(self.ask("scontrol", "show", what))
            except AssertionError as error:  # the controller may be what does not go on
                asked.append(str(error))
        return "\n".join(asked + [f"{path.name}:\n{path.read_text()}" for path in self.folder.glob("*.log")])


@contextlib.contextmanager
def slurm(nodes: list[Node], folder: Path) -> Iterator[Queue]:
    """Inside, jobs can be sent from the first node to all of them."""
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="slurm") as spool:  # its sockets' paths may not pass 107 characters
        (folder / "slurm.conf").write_text(_configuration(nodes, folder, spool))
        found = Queue(nodes, folder)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_daemon(nodes[0], ["slurmctld", "-D"], folder / "controller", found))
            for node in nodes:
                stack.enter_context(_daemon(node, ["slurmd", "-D", "-N", node.name], folder / node.name, found))
            deadline = time.monotonic() + 60
            while "idle" not in (said := _nodes_of(found)) or any(word in said for word in ("unk", "down", "*")):
                assert time.monotonic() < deadline, said + "".join(path.read_text() for path in folder.glob("*.log"))
                time.sleep(0.2)
            yield found


@contextlib.contextmanager
def _daemon(node: Node, command: list[str], output: Path, found: Queue) -> Iterator[None]:
    process = node.start(command, output, found.environment)
    try:
        yield
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):  # what does not heed it ends with the node
            process.wait(5)


def _nodes_of(found: Queue) -> str:
    try:
        return found.ask("sinfo", "--noheader", "--Node", "--format=%N %t")
    except AssertionError:
        return "not up"


def _configuration(nodes: list[Node], folder: Path, spool: str) -> str:
    names = ",".join(node.name for node in nodes)
    return f"""ClusterName=test
SlurmctldHost={nodes[0].name}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={spool}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/linear
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={names} CPUs=4
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
