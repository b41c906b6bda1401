"""Hostfiles that are damaged or hostile: read to nodes that say themselves again, or refused with every wrong line."""

from __future__ import annotations

import re

from mutations import damaged

from mmmoe.stages.hostfile import NAME, read_hostfile, write_hostfile

HOSTS = b"""# the cluster
node1 slots=8
node2.example.org   slots=4  # half of it
user@10.77.0.3 slots=1

\tnode4\tslots=16
"""
PIECES = (
    b" slots=", b"slots", b"=", b"8", b"0", b"-1", b"1e3", b"99999999999999999999", b"#", b"\n", b"\r", b"\t", b"node1",
    b"-oProxyCommand=sh", b"; rm -r x", b"$(x)", b"`x`", b"'", b'"', b"\\", b"\x00", b"\xff", b"\xc2\x85",
    b"\xe2\x80\xa8", b"\x1c", b"\xd9\xa3", b"max_slots=2", b"[1-4]", b"::1", b"^", b"/", b"%", b"\xef\xbb\xbf",
)  # fmt: skip


def test_damaged_hostfiles(fuzz, tmp_path):
    path, again = tmp_path / "hostfile", tmp_path / "again"

    def read(content):
        path.write_bytes(content)
        try:
            hosts = read_hostfile(path)
        except ValueError as error:
            told = str(error).split("\n")
            return "refused" if all(line.startswith(str(path)) for line in told) else "refused without a place"
        # What ssh and a shell are given is a name and nothing else.
        assert all(re.fullmatch(NAME, host.name, re.ASCII) and 0 < host.slots < 10**6 for host in hosts)
        assert len({host.name for host in hosts}) == len(hosts)
        write_hostfile(again, hosts)
        assert read_hostfile(again) == hosts
        return "read"

    seen = fuzz(damaged(HOSTS, PIECES), read)
    assert seen["read"] > 0
    assert seen["refused"] > 0
    assert not seen["refused without a place"]
