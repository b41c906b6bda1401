"""Every dependency is pinned, and `make check` asks whether a pin has a known weakness, if anybody answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
UNPINNED = {"lmms-eval": "pinned in pyproject.toml itself", "openpyxl": "of the extra lmms alone, beside lmms-eval"}


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_pin_is_exact_and_stands_once():
    assert [line for line in PINS if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.+!]*", line)] == []
    names = [plain(line.partition("==")[0]) for line in PINS]
    assert sorted(set(names)) == sorted(names)


def test_every_dependency_has_a_pin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {plain(re.match(r"[A-Za-z0-9._-]+", one)[0]) for one in wanted}
    assert names - {plain(line.partition("==")[0]) for line in PINS} - set(UNPINNED) == set()


def audit(file, address):
    command = [sys.executable, str(ROOT / ".ci" / "audit.py"), str(file), address]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def database():
    """Answers as osv.dev does: one package has a weakness."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
            results = [{"vulns": [{"id": "X-1"}]} if one["package"]["name"] == "weak" else {} for one in asked]
            content = json.dumps({"results": results}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_weak_pin_is_named_and_fails(tmp_path, database):
    (tmp_path / "pins.txt").write_text("# all\nweak==1.0\nsound==2\n")
    done = audit(tmp_path / "pins.txt", database)
    assert done.returncode == 1
    assert "weak 1.0: https://osv.dev/vulnerability/X-1" in done.stdout
    (tmp_path / "pins.txt").write_text("sound==2\n")
    assert audit(tmp_path / "pins.txt", database).returncode == 0


def test_where_nobody_answers_it_says_so_and_does_not_fail(tmp_path):
    (tmp_path / "pins.txt").write_text("sound==2\n")
    done = audit(tmp_path / "pins.txt", "http://127.0.0.1:9")
    assert done.returncode == 0
    assert "NOT compared" in done.stdout
