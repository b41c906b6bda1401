import base64

from mmmoe.report.examples import MAX_INLINED, clip


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
