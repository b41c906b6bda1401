"""Films, speech and sounds from synthetic packages: splits, motions, changes of sound, dialogues."""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("resvg_py")
pytest.importorskip("av")
pytest.importorskip("soundfile")
sys.path.append(str(Path(__file__).resolve().parents[2] / "data"))

import soundfile
from uni import benchmarks, clips, corpus, film_file, films, packages, prompts, sound, stamps
from uni import questions as q

SENTENCES = ("Please enter your password", "Enter the number", "The password is wrong", "Press the pound key")
COUNTS = {"password": 9, "enter": 8, "number": 7, "press": 6, "pound": 5, "key": 4}
COUNTS |= dict.fromkeys(("call", "message", "system", "volume"), 3)
CHOICES = q.Choices(("dog", "cat", "car", "tree", "ship"), ("dog", "bell", "saw", "owl", "drum"), COUNTS)


def tone(seconds=1.0, pitch=440.0, rate=sound.RATE):
    return (0.4 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def deb(path, files, compression="xz"):
    """Writes a Debian package whose files are given as {name: bytes}."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{compression}") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    parts = {"debian-binary": b"2.0\n", f"data.tar.{compression}": stream.getvalue()}
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, content in parts.items():
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content)
            file.write(b"\n" * (len(content) % 2))


def ogg(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, sound.RATE, format="OGG", subtype="VORBIS")
    return path


def caption(number, language="French", said=None):
    return stamps.SpokenCaption(Path(f"{number}.ogg"), language, f"A thing {number}.", said or f"chose {number}")


def prompt_clip(text=SENTENCES[0], asked=("enter", "password")):
    return clips.PromptClip("test/prompt-0000.flac", prompts.Prompt(Path("p.wav"), "p", text), asked)


def clip_of_each_kind():
    return [
        films.Film("train/film-0000.mp4", "dog", "grow", "a"),
        clips.LanguageClip("train/language-0000.flac", caption(1)),
        prompt_clip(),
        clips.EffectClip("train/sound-0000.flac", stamps.SoundEffect(Path("owl.ogg"), "owl", "bird"), False),
    ]


def test_a_debian_package_is_unpacked_without_dpkg_and_without_leaving_its_folder(tmp_path):
    archive = tmp_path / "sounds_1.0_all.deb"
    deb(archive, {"./usr/a.wav": b"sound", "./usr/b.txt": b"text", "../escaped.wav": b"no"})
    packages.unpack(archive, tmp_path / "out", re.compile(r"\.wav$"))
    found = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.wav"))]
    assert found == ["out/usr/a.wav"]
    (tmp_path / "out/usr/a.wav").write_bytes(b"kept")
    packages.unpack(archive, tmp_path / "out", re.compile(r"\.wav$"))
    assert (tmp_path / "out/usr/a.wav").read_bytes() == b"kept"


def test_without_apt_the_message_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=rf"put tuxpaint-stamps-default_.*\.deb .* into {tmp_path} by hand"):
        packages.fetch_debian(packages.STAMPS, tmp_path)
    (tmp_path / "x.deb").write_bytes(b"no package")
    with pytest.raises(ValueError, match="is no Debian package: delete it"):
        packages.data_member(tmp_path / "x.deb")


def test_another_version_is_taken_and_told(tmp_path):
    deb(tmp_path / "tuxpaint-stamps-default_2030.1-1_all.deb", {"./a.txt": b"a"})
    assert packages.fetch_debian(packages.STAMPS, tmp_path).name.startswith("tuxpaint-stamps-default_2030")
    told = packages.versions(tmp_path)[packages.STAMPS.name]
    assert told.startswith("2030.1-1 ")
    assert told.endswith(f"(not the pinned {packages.STAMPS.version})")


@pytest.fixture
def stamp_folder(tmp_path, monkeypatch):
    """Two birds of different voice, two of one recording, a sentence, and captions in two languages."""
    monkeypatch.setattr(stamps, "LEAST", dict.fromkeys(stamps.LEAST, 0))
    root = tmp_path / "usr/share/tuxpaint/stamps"
    shared = tone(pitch=300)
    for name, text, samples in (
        ("owl", "An owl.", tone(pitch=500)),
        ("crow", "A crow.", tone(pitch=700)),
        ("lark", "A lark.", shared),
        ("finch", "A finch.", shared),
        ("sign", "This is the sign of the end.", tone(pitch=900)),
    ):
        folder = root / "animals/birds"
        ogg(folder / f"{name}.ogg", samples)
        (folder / f"{name}.txt").write_text(f"{text}\nfr.utf8=Un {name}.\n")
        ogg(folder / f"{name}_desc_fr.ogg", tone(0.5))
        Image.new("RGBA", (20, 10), (255, 0, 0, 255)).save(folder / f"{name}.png")
    return tmp_path


def test_a_recording_of_two_things_names_none(stamp_folder):
    found = stamps.load_stamps(stamp_folder)
    assert [(effect.name, effect.kind) for effect in found.sounds] == [("crow", "bird"), ("owl", "bird")]
    assert {name for name, _ in found.photos} == {"owl", "crow", "lark", "finch"}
    assert {(c.language, c.said) for c in found.captions if c.english == "An owl."} == {("French", "Un owl.")}


def test_a_package_with_too_little_is_refused(stamp_folder, monkeypatch):
    monkeypatch.setattr(stamps, "LEAST", {"captions of each language": 0, "sounds": 3, "photos": 0})
    with pytest.raises(ValueError, match=r"holds too little: \{'sounds': 2\}"):
        stamps.load_stamps(stamp_folder)


def test_prompts_have_their_transcripts_and_words(tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "LEAST", 2)
    folder = tmp_path / "sounds" / prompts.SPEAKER / "digits"
    folder.mkdir(parents=True)
    for name in ("1", "beep"):
        soundfile.write(folder / f"{name}.wav", tone(), 8000)
    soundfile.write(folder.parent / "enter.wav", tone(), 8000)
    lines = "; title\ndigits/1: One.\ndigits/beep: [a tone]\nenter: Please enter, enter the PIN.\nlost: Gone.\n"
    (tmp_path / "core-sounds-en.txt.gz").write_bytes(gzip.compress(lines.encode()))
    found = prompts.load_prompts(tmp_path / "sounds", tmp_path)
    assert [(prompt.name, prompt.words) for prompt in found] == [
        ("digits/1", ("one",)),
        ("enter", ("please", "enter", "pin")),
    ]
    monkeypatch.setattr(prompts, "LEAST", 3)
    with pytest.raises(ValueError, match="hold 2 prompts with transcripts, at least 3"):
        prompts.load_prompts(tmp_path / "sounds", tmp_path)


def test_no_text_of_the_language_test_is_said_in_training(monkeypatch):
    monkeypatch.setattr(clips, "seconds", lambda file: 7.0 if file.stem == "3" else 1.0)
    spoken = [caption(n, language) for n in range(200) for language in stamps.LANGUAGES.values()]
    spoken += [caption(n, "French", said="le meme") for n in range(200, 260)]
    train, test = clips.language_clips(spoken, {"train": 1000, "test": 10})
    said = {(clip.caption.language, clip.caption.said) for clip in train}
    english = {clip.caption.english for clip in train}
    assert not [clip for clip in test if (clip.caption.language, clip.caption.said) in said]
    assert not [clip for clip in test if clip.caption.english in english]
    assert Counter(clip.caption.language for clip in test) == dict.fromkeys(stamps.LANGUAGES.values(), 10)
    assert "3" not in {clip.caption.file.stem for clip in [*train, *test]}


def test_no_prompt_of_the_word_test_is_trained_on_and_no_word_prevails(monkeypatch):
    monkeypatch.setattr(clips, "seconds", lambda file: 1.0)
    spoken = [prompts.Prompt(Path(f"{n}.wav"), str(n), f"{SENTENCES[n % 4]} {n}") for n in range(200)]
    train, test = clips.prompt_clips(spoken, COUNTS, number=12, most=3)
    assert not {clip.prompt.text for clip in train} & {clip.prompt.text for clip in test}
    assert all(clip.prompt.is_test for clip in test)
    asked = Counter(word for clip in test for word in clip.asked)
    assert sum(asked.values()) == 12
    assert max(asked.values()) <= 3
    assert set(asked) <= set(COUNTS)


def test_changes_of_the_test_lie_outside_those_of_training():
    for name, (low, high) in clips.TEST_CHANGES.items():
        first, last = clips.TRAIN_CHANGES[name]
        assert high < first or low > last
    assert 1 / clips.TEST_CHANGES["pitch"][0] < clips.TRAIN_CHANGES["pitch"][0]


def test_an_excerpt_is_the_same_each_time_and_differs_between_clips(tmp_path):
    effect = stamps.SoundEffect(ogg(tmp_path / "owl.ogg", tone(4.0)), "owl", "bird")
    train, test = clips.effect_clips([effect], each=2, number=1)
    for number, clip in enumerate([*train, *test, train[0]]):
        clip.write(tmp_path / f"{number}.flac")
    first, second, held_out, again = ((tmp_path / f"{n}.flac").read_bytes() for n in range(4))
    assert first == again
    assert len({first, second, held_out}) == 3
    samples, rate = soundfile.read(tmp_path / "2.flac")
    assert (rate, len(samples)) == (sound.RATE, round(clips.EXCERPT * sound.RATE))


@pytest.mark.parametrize(("rate", "target"), [(8000, 16000), (44100, 16000), (16000, 16720)])
def test_a_tone_keeps_its_pitch_and_length_at_another_rate(rate, target):
    found = sound.resample(tone(1.0, 440, rate), rate, target)
    assert len(found) == target
    wanted = tone(1.0, 440, target)
    middle = slice(target // 10, -target // 10)
    assert float(np.abs(found[middle] - wanted[middle]).max()) < 0.02


def test_silence_is_cut_and_the_rest_levelled():
    quiet = np.zeros(sound.RATE, dtype=np.float32)
    heard = sound.cut_silence(np.concatenate([quiet, 0.1 * tone(2.0), quiet]), longest=6)
    assert len(heard) / sound.RATE == pytest.approx(2.0 + 2 * sound.MARGIN, abs=0.02)
    assert float(np.abs(heard).max()) == pytest.approx(sound.PEAK, rel=1e-3)
    assert len(sound.cut_silence(tone(9.0), longest=6)) == 6 * sound.RATE
    assert len(sound.cut_silence(quiet, longest=6)) == 0


def test_noise_and_level_are_as_many_decibels_as_asked():
    clean = tone(2.0)
    noise = sound.noisy(clean, 20.0, np.random.default_rng(0)) - clean
    assert 10 * np.log10((clean**2).mean() / (noise**2).mean()) == pytest.approx(20, abs=0.2)
    assert float(np.abs(sound.softer(clean, 20.0)).max()) == pytest.approx(0.04, rel=1e-3)


@pytest.fixture
def dot(monkeypatch):
    """Every drawing is a red square but for one half, so that turning shows."""

    def rasterise(artist, code, size):
        picture = Image.new("RGBA", (size, size), (255, 0, 0, 255))
        picture.paste((0, 0, 255, 255), (0, 0, size // 2, size))
        return picture

    monkeypatch.setattr(films, "rasterise", rasterise)


def trace(motion):
    """Returns (spread across, spread down, change of area, change of the halves) over a film's pictures."""
    frames = [np.asarray(f).astype(int) for f in films.Film("f.mp4", "dog", motion, "seed", "noto", "1").frames()]
    inked = [np.abs(f - f[0, 0]).sum(axis=2) > 100 for f in frames]
    rows, columns, areas = zip(*((*np.argwhere(ink).mean(axis=0), ink.sum()) for ink in inked), strict=True)
    halves = float(np.abs(frames[0] - frames[4])[40:56, 40:56].mean())
    return np.ptp(columns), np.ptp(rows), max(areas) / min(areas), halves


def test_a_motion_does_what_it_is_called_and_nothing_else(dot):
    found = {motion: trace(motion) for motion in films.MOTIONS}
    assert found["stay"] == (0, 0, 1, 0)
    assert found["move sideways"][0] > 40
    assert found["move sideways"][1] < 2
    assert found["move up and down"][1] > 40
    assert found["move up and down"][0] < 2
    assert found["grow"][2] > 4
    assert max(found["grow"][:2]) < 2
    assert found["turn"][3] > 50
    assert max(found["turn"][:2]) < 3


def test_a_film_file_holds_its_pictures_and_repeats_to_the_byte(dot, tmp_path):
    import av

    frames = films.Film("f.mp4", "dog", "move sideways", "seed", "noto", "1").frames()
    for name in ("a.mp4", "b.mp4"):
        film_file.write_film(tmp_path / name, frames)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with av.open(str(tmp_path / "a.mp4")) as container:
        found = [np.asarray(frame.to_image()).astype(int) for frame in container.decode(video=0)]
    assert len(found) == films.FRAMES
    for picture, wanted in zip(found, frames, strict=True):
        assert np.abs(picture - np.asarray(wanted)).mean() < 12


def test_a_photo_is_cut_to_its_subject(tmp_path):
    picture = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
    picture.paste((10, 200, 10, 255), (20, 10, 40, 20))
    picture.save(tmp_path / "p.png")
    box = films.cut_out(tmp_path / "p.png").getchannel("A").point(lambda a: 255 * (a > 128)).getbbox()
    assert box == (0, films.SPRITE // 4, films.SPRITE, films.SPRITE * 3 // 4)


@pytest.mark.parametrize("clip", clip_of_each_kind(), ids=lambda clip: type(clip).__name__)
def test_every_answer_is_among_the_choices_and_in_the_description(clip):
    for turn in range(20):
        asked = q.ask_clip(clip, CHOICES, films.generator(turn))
        assert asked
        for question in asked:
            assert question.answer in question.choices
            assert len(set(question.choices)) == len(question.choices)
            assert all(choice in question.question for choice in question.choices)
            assert question.answer in q.describe(clip)


def test_a_wrong_word_is_never_said():
    for turn in range(50):
        asked = q.ask_word(prompt_clip(), "enter", CHOICES, films.generator(turn))
        assert "password" not in asked.choices


def test_rows_have_the_field_and_the_mark_of_their_kind():
    made = clip_of_each_kind()
    for rows in (corpus.question_rows(made, CHOICES), corpus.caption_rows(made, 4)):
        assert len({row["id"] for row in rows}) == 4
        kinds = Counter(kind for row in rows for kind in ("video", "speech", "audio") if kind in row)
        assert kinds == {"video": 1, "speech": 2, "audio": 1}
        for row in rows:
            text = "".join(turn["value"] for turn in row["conversations"])
            assert re.findall("<[a-z]+>", text) == [f"<{row['domain']}>"]
            assert row["conversations"][0]["value"].startswith(f"<{row['domain']}>\n")
    assert len(corpus.caption_rows(made, 2)) == 2


def test_the_text_side_holds_no_media_and_no_test_prompt(monkeypatch):
    monkeypatch.setattr(corpus, "TEXT_FILMS", 5)
    monkeypatch.setattr(corpus, "TEXT_WORDS", 5)
    trained = [prompts.Prompt(Path(), str(n), text) for n, text in enumerate(SENTENCES)]
    effect = stamps.SoundEffect(Path("owl.ogg"), "owl", "bird")
    rows = corpus.text_rows([caption(1)], trained, [effect], CHOICES)
    assert len(rows) == 5 + 5 + 1 + corpus.TEXT_PROMPTS * 4 + corpus.TEXT_SOUNDS
    assert not re.search("<(image|video|speech|audio)>", json.dumps(rows))
    assert all(set(row) == {"id", "domain", "conversations"} for row in rows)
    assert rows == corpus.text_rows([caption(1)], trained, [effect], CHOICES)


def test_benchmark_lines_hold_what_an_evaluation_reads_and_guessing_is_known():
    film, language, prompt, effect = clip_of_each_kind()
    found = benchmarks.benchmark_lines([film], [language], [prompt], [effect], CHOICES)
    assert {name: len(lines) for name, lines in found.items()} == {
        "video_name": 1,
        "video_motion": 1,
        "speech_language": 1,
        "speech_word": 2,
        "audio_name": 1,
    }
    for name, lines in found.items():
        for line in lines:
            kind = name.split("_")[0]
            assert set(line) == {"id", kind, "question", "answer", "choices", "domain"}
            assert line[kind].startswith("media/")
    lines = [{"choices": ["a", "b"], "answer": answer} for answer in "aaab"]
    assert benchmarks.guesses(lines, {"b": 3, "a": 1}) == {
        "questions": 4,
        "chance": 0.5,
        "majority": 0.75,
        "frequent": 0.25,
    }
