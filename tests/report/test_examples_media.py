import base64
import json

from synthetic_run import write_run

from mmmoe.report.examples import MAX_INLINED, clip
from mmmoe.report.page import write_report


def test_small_clips_are_inlined_and_others_named(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFFsound")
    (tmp_path / "f.webm").write_bytes(b"film")
    (tmp_path / "big.mp4").write_bytes(bytes(MAX_INLINED + 1))
    (tmp_path / "x.html").write_bytes(b"<script>")
    sound = clip("speech", "a.wav", tmp_path)
    assert (sound.kind, sound.name) == ("speech", "a.wav")
    kind, _, content = sound.address.partition(";base64,")
    assert kind == "data:audio/wav"
    assert base64.b64decode(content) == b"RIFFsound"
    assert clip("video", "f.webm", tmp_path).address.startswith("data:video/webm;base64,")
    for name in ("big.mp4", "x.html", "gone.mp3"):
        shown = clip("video", name, tmp_path)
        assert (shown.name, shown.address) == (name, None)
    frames = clip("video", ["d/0.png", "d/1.png"], tmp_path)
    assert (frames.name, frames.address) == ("2 frames from 0.png", None)


def test_the_page_plays_them_without_loading_anything(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "a.wav").write_bytes(b"RIFFsound")
    (folder / "f.mp4").write_bytes(b"film")
    answers = next((folder / "evaluation" / "trained").glob("*.jsonl"))
    row = {
        "id": "s", "image": None, "speech": "a.wav", "video": "f.mp4", "question": "<speech>\n<video>\nwhat is said?",
        "answer": "a", "prediction": "a", "correct": True, "choices": [], "scores": [], "domain": "general",
    }  # fmt: skip
    answers.write_text(json.dumps(row) + "\n")
    text = write_report(folder).read_text()
    assert '<audio controls src="data:audio/wav;base64,' in text
    assert '<video controls src="data:video/mp4;base64,' in text
    assert '<p class="asked">what is said?</p>' in text
    assert "speech: a.wav" in text
    assert "media-src data:" in text
