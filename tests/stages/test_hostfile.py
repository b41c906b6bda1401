"""Lists of nodes: DeepSpeed's form, and every line that is wrong told at once."""

from __future__ import annotations

import pytest

from mmmoe.paths import project_root
from mmmoe.stages.hostfile import Host, processes, read_hostfile, write_hostfile


def test_nodes_come_in_order_and_comments_are_left_out(tmp_path):
    file = tmp_path / "hostfile"
    file.write_text("# two nodes\n\nnode-b slots=2\nuser@10.0.0.7   slots=4  # the big one\n")
    assert read_hostfile(file) == [Host("node-b", 2), Host("user@10.0.0.7", 4)]
    assert processes(read_hostfile(file)) == 6


def test_what_is_written_is_read_again(tmp_path):
    hosts = [Host("a", 1), Host("b", 8)]
    write_hostfile(tmp_path / "hostfile", hosts)
    assert read_hostfile(tmp_path / "hostfile") == hosts


def test_every_wrong_line_is_told(tmp_path):
    file = tmp_path / "hostfile"
    file.write_text("a slots=2\nb\na slots=1\n-oProxyCommand=x slots=1\nc;reboot slots=1\nd slots=0\n")
    with pytest.raises(ValueError, match="not `host slots=N`") as told:
        read_hostfile(file)
    assert [line.split(":")[1] for line in str(told.value).splitlines()] == ["2", "3", "4", "5", "6"]


@pytest.mark.parametrize("text", [None, "", "# nobody\n"])
def test_a_missing_or_empty_file_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "hostfile").write_text(text)
    with pytest.raises(ValueError, match="host slots=N"):
        read_hostfile(tmp_path / "hostfile")


def test_a_folder_is_told_as_one(tmp_path):
    with pytest.raises(ValueError, match="is a folder; write a line `host slots=N`"):
        read_hostfile(tmp_path)


def test_the_example_is_one():
    assert processes(read_hostfile(project_root() / "configs/hostfile")) == 16
