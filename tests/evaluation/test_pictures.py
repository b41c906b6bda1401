"""Pictures, sounds and films inside tables: written once by content, whole, and refused when they are none."""

from __future__ import annotations

import base64
import hashlib
import io
import multiprocessing as mp

import av
import numpy as np
import pytest
from PIL import Image
from published_forms import png, wav

from mmmoe.data import transforms
from mmmoe.evaluation import pictures
from mmmoe.evaluation.pictures import PictureStore, check_file, content


def encoded(form, size=(4, 2), mode="RGB"):
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, form)
    return stream.getvalue()


def film():
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("mpeg4", rate=4)
        track.width = track.height = 16
        for shade in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 60 * shade, np.uint8), format="rgb24")
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return stream.getvalue()


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("form", "ending"),
    [("PNG", "png"), ("JPEG", "jpg"), ("GIF", "gif"), ("BMP", "bmp"), ("WEBP", "webp"), ("TIFF", "tif")],
)
def test_a_picture_lies_under_its_digest(form, ending, tmp_path):
    data = encoded(form)
    digest = hashlib.sha256(data).hexdigest()
    path = PictureStore(tmp_path).keep(data, "image")
    assert path == tmp_path / "table_media" / digest[:2] / f"{digest}.{ending}"
    assert path.read_bytes() == data


def test_sounds_and_films_are_kept_as_well(tmp_path):
    store = PictureStore(tmp_path)
    for data, kind, ending in ((wav(1), "audio", ".wav"), (wav(2), "speech", ".wav"), (film(), "video", ".mp4")):
        path = store.keep(data, kind)
        assert (path.suffix, path.read_bytes()) == (ending, data)


def test_a_content_is_written_and_decoded_once(tmp_path, monkeypatch):
    store = PictureStore(tmp_path)
    first = store.keep(png(1), "image")
    written = first.stat().st_mtime_ns
    monkeypatch.setattr(pictures, "decode", None)
    assert store.keep(png(1), "image") == first
    assert PictureStore(tmp_path).keep(png(1), "image") == first
    assert first.stat().st_mtime_ns == written
    assert len(files(tmp_path)) == 1


def keep_many(folder, start):
    start.wait()
    store = PictureStore(folder)
    for shade in range(40):
        assert store.keep(png(shade), "image").read_bytes() == png(shade)


def test_several_processes_write_the_same_pictures(tmp_path):
    context = mp.get_context("fork")
    start = context.Barrier(3)
    workers = [context.Process(target=keep_many, args=(tmp_path, start)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(files(tmp_path)) == 40, "and nothing half written is left"


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"not a picture", "image", "image cannot be decoded .unknown form."),
        (encoded("JPEG", (64, 64))[:-200], "image", "cannot be decoded"),
        (png(1)[:-30], "image", "cannot be decoded"),
        (b"", "image", "cannot be decoded"),
        (b"MZ\x90\x00 a program", "audio", "audio of an unknown form"),
        (wav(1)[:30], "audio", "audio .* cannot be read"),
        (b"RIFF\x00\x00\x00\x00WAVE", "speech", "speech .* cannot be read"),
        (film()[:40], "video", "video .* cannot be read"),
        (png(1), "video", "video of an unknown form"),
    ],
)
def test_what_cannot_be_read_is_refused_and_leaves_nothing(data, kind, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        PictureStore(tmp_path).keep(data, kind)
    assert files(tmp_path) == []


def test_pictures_of_too_many_pixels_are_refused(tmp_path, monkeypatch):
    for module in (transforms, pictures):
        monkeypatch.setattr(module, "MAX_PIXELS", 100)
    with pytest.raises(ValueError, match="exceeds the limit of 100"):
        PictureStore(tmp_path).keep(encoded("PNG", (11, 10)), "image")
    (tmp_path / "a.png").write_bytes(encoded("PNG", (11, 10)))
    with pytest.raises(ValueError, match=r"image a.png cannot be read \(11 x 10 pixels exceed the limit of 100\)"):
        check_file(tmp_path / "a.png", "image")


def test_a_store_without_a_folder_keeps_nothing():
    with pytest.raises(ValueError, match="no cache was given to write them to"):
        PictureStore(None).keep(png(1), "image")


def test_every_way_a_cell_holds_a_picture():
    data, text = png(3), base64.b64encode(png(3)).decode()
    broken_up = "\n".join(text[at : at + 20] for at in range(0, len(text), 20))
    uri = f"data:image/png;charset=utf-8;base64,{text}"
    for cell in (data, text, broken_up, uri, {"bytes": data, "path": "x.png"}, [{"bytes": data}], [text]):
        assert content(cell) == data
    for cell in (None, [], "", {"bytes": None, "path": None}):
        assert content(cell) is None


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("abc", "not base64"),
        ("a file.png", "not base64 .*if it is a file's name, give `media`"),
        ("data:image/png;base64,%%%", "not base64"),
        ("HTTPS://example.org/x.png", "nothing is fetched"),
        ({"bytes": None, "path": "/x/y.png"}, "names '/x/y.png' but does not hold it"),
        ([b"a", b"b"], "holds 2 items"),
        (3.5, "holds float"),
    ],
)
def test_cells_that_hold_none(cell, words):
    with pytest.raises(ValueError, match=words):
        content(cell)
