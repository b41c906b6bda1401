"""The read-only page of `mmmoe ui`: runs, their reports and plots, for this machine alone."""

from __future__ import annotations

import html
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from mmmoe.log import logger
from mmmoe.report.page import PAGE_FILE, PLOTS_FOLDER, write_report

HOST = "127.0.0.1"
PORT = 8123
KINDS = {".html": "text/html; charset=utf-8", ".png": "image/png"}
"""What is handed out, by ending; nothing else in a run folder is."""
POLICY = "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = "body{font:16px/1.6 system-ui,sans-serif;max-width:50rem;margin:3rem auto;padding:0 1rem}"


class ReportServer(ThreadingHTTPServer):
    """Hands out the reports of a run folder, or of all run folders in a folder; listens on the loopback address."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int = PORT) -> None:
        """Begins to listen.

        Args:
            folder: a run's, or one that holds some.
            port: TCP port; 0 takes a free one.

        Raises:
            ValueError: There is no run, or the port is taken.
        """
        self.folder = folder.resolve()
        self._lock = threading.Lock()
        if not self.runs():
            raise ValueError(
                f"{folder} is no run folder and holds none; name one that `mmmoe run` made, or their folder"
            )
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ValueError(f"port {port} cannot be listened on ({error}); write port=N with another") from error

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{HOST}:{self.server_port}/"

    def runs(self) -> dict[str, Path]:
        """Returns the run folders by name; a link is none."""
        if _is_run(self.folder):
            return {self.folder.name: self.folder}
        inside = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        return {path.name: path for path in inside if not path.is_symlink() and _is_run(path)}

    def file(self, path: str) -> Path | None:
        """Returns the file that an address `/RUN/report.html` or `/RUN/plots/NAME.png` means, if it is one."""
        run, *rest = path.strip("/").split("/")
        folder = self.runs().get(run)
        is_known = rest == [PAGE_FILE] or (len(rest) == 2 and rest[0] == PLOTS_FOLDER and rest[1].endswith(".png"))
        if folder is None or not is_known or any(part in ("", ".", "..") or "\0" in part for part in rest):
            return None
        if rest == [PAGE_FILE]:
            self._refresh(folder)
        file = folder.joinpath(*rest)
        # A link inside the folder could lead out of it.
        return file if file.is_file() and file.resolve() == file else None

    def _refresh(self, folder: Path) -> None:
        """Writes a report again when the run has written since; a folder that cannot be written shows the old one."""
        page = folder / PAGE_FILE
        sources = [*folder.glob("stages/*/metrics.jsonl"), *folder.glob("evaluation/*.json"), folder / "ledger.jsonl"]
        with self._lock:
            newest = max((path.stat().st_mtime_ns for path in sources if path.is_file()), default=0)
            if page.is_file() and page.stat().st_mtime_ns >= newest:
                return
            try:
                write_report(folder)
            except (OSError, ValueError) as error:
                logger().warning("the report of %s is not written: %s", folder, error)

    def index(self) -> bytes:
        """Returns the page that lists the runs."""
        rows = "".join(
            f'<li><a href="/{quote(name, safe="")}/{PAGE_FILE}">{html.escape(name)}</a></li>' for name in self.runs()
        )
        title = html.escape(self.folder.name)
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
            f"</head><body><h1>Runs in {title}</h1><ul>{rows}</ul></body></html>"
        ).encode()


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    server_version, sys_version = "mmmoe", ""
    timeout = 30

    def do_GET(self) -> None:
        """Answers with a page, or says that there is none."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in (HOST, "localhost"):
            # A web page elsewhere may give its own name this machine's address and ask as if it were ours.
            self.send_error(HTTPStatus.FORBIDDEN, "only 127.0.0.1 and localhost are answered")
            return
        try:
            path = unquote(urlsplit(self.path).path, errors="strict")
            file = None if path == "/" else self.server.file(path)
            content = self.server.index() if path == "/" else file.read_bytes() if file is not None else None
        except (OSError, ValueError):
            content = None
        if content is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", KINDS[".html" if file is None else file.suffix])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def end_headers(self) -> None:
        """Adds what keeps the page to itself; errors have it, too."""
        for name, value in (
            ("Content-Security-Policy", POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: a line a request would hide what matters."""


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("ledger.jsonl", "stages", PAGE_FILE))
