"""The read-only page: what it hands out, and all that it does not."""

from __future__ import annotations

import http.client
import os
import socket
import threading

import pytest

from mmmoe import cli
from mmmoe.report.serve import ReportServer

LINE = '{"step": %d, "loss": 2.5, "seconds": 0.1, "lr": [0.1]}\n'


@pytest.fixture
def runs(tmp_path):
    for name in ("one", "two <b>"):
        stage = tmp_path / "runs" / name / "stages" / "align"
        stage.mkdir(parents=True)
        (stage / "metrics.jsonl").write_text(LINE % 1)
        (tmp_path / "runs" / name / "spec.yaml").write_text(f"name: {name}\nstages: [{{name: align}}]\n")
    (tmp_path / "outside.png").write_bytes(b"hidden")
    (tmp_path / "runs" / "notes").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def server(runs):
    with ReportServer(runs, 0) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(server, path, method="GET", host=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def test_runs_are_listed_and_their_reports_follow_the_metrics(server, runs):
    answer, content = ask(server, "/")
    assert answer.status == 200
    assert b"two &lt;b&gt;</a>" in content
    assert b"notes" not in content
    assert ask(server, "/one/report.html")[0].getheader("Content-Type") == "text/html; charset=utf-8"
    page = runs / "one" / "report.html"
    written = page.stat().st_mtime_ns
    ask(server, "/one/report.html")
    assert page.stat().st_mtime_ns == written
    metrics = runs / "one" / "stages" / "align" / "metrics.jsonl"
    metrics.write_text(LINE % 1 + LINE % 2)
    os.utime(metrics, ns=(written + 10**9, written + 10**9))
    ask(server, "/one/report.html")
    assert page.stat().st_mtime_ns != written
    plot = next((runs / "one" / "plots").glob("*.png"))
    answer, content = ask(server, f"/one/plots/{plot.name}")
    assert (answer.getheader("Content-Type"), content) == ("image/png", plot.read_bytes())
    assert ask(server, f"/one/plots/{plot.name}", "HEAD")[1] == b""


@pytest.mark.parametrize(
    "path",
    [
        "/one/spec.yaml", "/one/stages/align/metrics.jsonl", "/one/../one/spec.yaml", "/one/plots/../spec.yaml", "/../",
        "/one/plots/../../../outside.png", "/one/plots/%2e%2e%2f%2e%2e%2foutside.png", "/one/plots/..%2f..%2fx.png",
        "//etc/passwd", "/etc/passwd", "/one/plots//etc/passwd", "/one/plots/link.png", "/linked/report.html", "/one/",
        "/one/plots/%00.png", "/%ff", "/one/plots/", "/notes/report.html", "/one/plots/\\..\\x.png",
    ],
)  # fmt: skip
def test_nothing_else_is_handed_out(server, runs, path):
    (runs / "one" / "plots").mkdir()
    (runs / "one" / "plots" / "link.png").symlink_to(runs.parent / "outside.png")
    (runs / "linked").symlink_to(runs / "one")
    answer, content = ask(server, path)
    assert answer.status == 404
    assert b"hidden" not in content
    assert answer.getheader("Content-Security-Policy").startswith("default-src 'none'")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_is_taken(server, runs, method):
    before = sorted(runs.rglob("*"))
    assert ask(server, "/one/report.html", method)[0].status == 501
    assert sorted(runs.rglob("*")) == before


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::1]:80", " "])
def test_a_name_that_is_not_this_machines_is_refused(server, host):
    assert ask(server, "/", host=host)[0].status == 403
    assert ask(server, "/", host="localhost:1")[0].status == 200


def test_only_the_loopback_address_listens(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"
    with socket.socket() as probe:
        probe.settimeout(2)
        # The whole of 127.0.0.0/8 is this machine's: a server on every address would answer there as well.
        assert probe.connect_ex(("127.0.0.2", server.server_port)) != 0


def test_mistakes_are_told(runs, server, tmp_path):
    with pytest.raises(ValueError, match="is no run folder and holds none"):
        ReportServer(tmp_path / "none")
    with pytest.raises(ValueError, match=r"cannot be listened on .*port=N"):
        ReportServer(runs, server.server_port)
    for settings in (["port=x"], ["port=70000"], ["host=0.0.0.0"]):
        with pytest.raises(ValueError, match="takes port=N"):
            cli.ui(runs, settings)


def test_one_run_alone_is_shown(runs):
    with ReportServer(runs / "one", 0) as server:
        assert list(server.runs()) == ["one"]
        assert server.address == f"http://127.0.0.1:{server.server_port}/"
