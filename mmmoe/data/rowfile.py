"""An array of rows written as they come: a .npy file whose header follows when their number is known.

Behind the rows there is room for a note, which numpy does not look at: what belongs to them comes and goes with them.
"""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

HEADER = 128
"""Bytes kept free in front; numpy pads its headers to this for up to five axes."""


class RowFile:
    """Collects rows beside a path; the file has its name when the block ends without an error, or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._count = 0
        self._shape: tuple[int, ...] = ()
        self._dtype: Any = None
        self._note = b""

    def __enter__(self) -> RowFile:
        self._stream = self._temporary.open("wb")
        self._stream.write(bytes(HEADER))
        return self

    def append(self, rows: np.ndarray) -> None:
        """Adds rows; all calls bring rows of one shape and type."""
        if self._dtype is None:
            self._dtype, self._shape = rows.dtype, rows.shape[1:]
        assert (rows.dtype, rows.shape[1:]) == (self._dtype, self._shape), "rows of one file are alike"
        self._stream.write(np.ascontiguousarray(rows).data)
        self._count += len(rows)

    def note(self, content: bytes) -> None:
        """Sets what stands behind the rows."""
        self._note = content

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._stream as stream:
                if kind is None:
                    stream.write(self._note)
                    stream.seek(0)
                    stream.write(self._header())
            if kind is None:
                self._temporary.replace(self._path)
        finally:
            self._temporary.unlink(missing_ok=True)

    def _header(self) -> bytes:
        assert self._dtype is not None, "a file of no rows has no shape"
        buffer = BytesIO()
        shape = (self._count, *self._shape)
        described = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(buffer, described)
        header = buffer.getvalue()
        assert len(header) == HEADER, f"numpy's header has {len(header)} bytes"
        return header


def read_rows(path: Path) -> tuple[np.memmap[Any, Any], bytes]:
    """Returns a file's rows, mapped, and the note behind them, empty where there is none.

    Raises:
        ValueError: The file is cut off or no array.
    """
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    with path.open("rb") as stream:
        stream.seek(rows.offset + rows.nbytes)
        return rows, stream.read()
