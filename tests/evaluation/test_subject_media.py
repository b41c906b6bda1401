"""Questions about films and sounds: encoded once, repeated by chunks, silenced in a blind run."""

import pytest
import torch
from evaluation_fakes import FakeModel, FakeTemplate

from mmmoe.config.ids import MEDIA_IDS
from mmmoe.data.media import ID_OF_MARK, MARKED
from mmmoe.evaluation.questions import Question, load_questions
from mmmoe.evaluation.runner import evaluate
from mmmoe.evaluation.spec import BenchmarkSpec, EvaluationSpec
from mmmoe.evaluation.subject import Subject


class MediaTemplate(FakeTemplate):
    def prompt(self, turns):
        ids = []
        for part in MARKED.split(turns[0].text):
            ids += [ID_OF_MARK[part]] if part in ID_OF_MARK else [ord(c) for c in part]
        return [*ids, ord(":")]


class Bytes:
    """A file is as many chunks as it has bytes (sound), or one item of the first byte's shade."""

    def __init__(self, kind):
        self.kind = kind
        self.key = f"bytes of {kind}"

    def __call__(self, item):
        data = item if isinstance(item, bytes) else b"".join(item)
        if not data:
            raise ValueError("empty")
        if self.kind in ("speech", "audio"):
            return torch.tensor([[[float(byte)]] for byte in data])
        return torch.full((len(data) if self.kind == "video" else 3, 3, 2, 2), float(data[0]))

    def blank(self):
        return torch.zeros(1, 1, 1) if self.kind in ("speech", "audio") else torch.full((2, 3, 2, 2), 128.0)


class MediaModel(FakeModel):
    """Says the shades of everything it is given, kind by kind; notes the ids it sees."""

    kinds = ("video", "speech", "audio")

    def __init__(self):
        super().__init__()
        self.seen, self.given = [], []

    def encode(self, kind, media):
        self.encoded += len(media)
        if kind == "video":
            return media.mean((2, 3, 4))[:, :, None, None].expand(-1, -1, 2, 4)
        return media.expand(-1, 2, 4)

    def generate(self, input_ids_BT, attention_mask_BT, media=None, features=None, *, max_new_tokens, eos_id, pad_id):
        self.seen.append(input_ids_BT)
        self.given.append(features)
        answers = []
        for ids, mask in zip(input_ids_BT, attention_mask_BT, strict=True):
            real = ids[mask].tolist()
            told = [f"{kind}{real.count(MEDIA_IDS[kind])}" for kind in self.kinds if MEDIA_IDS[kind] in real]
            answers.append([ord(c) for c in " ".join(told)])
        for kind, tensor in (features or {}).items():
            assert len(tensor) == int((input_ids_BT == MEDIA_IDS[kind]).sum()), "a row a placeholder"
        return answers


@pytest.fixture
def files(tmp_path):
    def write(name, content):
        (tmp_path / name).write_bytes(bytes(content))
        return tmp_path / name

    return write


def subject_of(model, **options):
    transforms = {kind: Bytes(kind) for kind in model.kinds}
    return Subject(model, MediaTemplate(), transforms, torch.device("cpu"), **options)


@pytest.fixture
def questions(files):
    long, short, film = files("l.wav", [7, 8, 9]), files("s.wav", [5]), files("f.mp4", [60, 60])
    frames = (files("0.png", [61]), files("1.png", [61]))
    return [
        Question("1", "said", "speech3", speech=long),
        Question("2", "heard", "audio1", audio=short),
        Question("3", "both", "video1 speech1", speech=short, video=film),
        Question("4", "frames", "video1", video=frames),
        Question("5", "again <speech> here", "speech3", speech=long),
        Question("6", "nothing", ""),
    ]


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_every_question_gets_its_own_media(questions, batch):
    model = MediaModel()
    assert subject_of(model, batch=batch).generate(questions, 30) == [q.answer for q in questions]
    assert model.encoded == 3 + 1 + 1 + 1 + 1, "each content once a kind: l, s as speech, s as audio, film, frames"


def test_rows_are_in_reading_order(questions):
    model = MediaModel()
    subject_of(model).generate(questions, 30)
    ids, features = model.seen[0], model.given[0]
    chunks = (ids == MEDIA_IDS["speech"]).sum(1).tolist()
    assert sorted(chunks) == [0, 0, 0, 1, 3, 3]
    wanted = [shade for count in chunks for shade in ([7.0, 8.0, 9.0] if count == 3 else [5.0] * count)]
    assert features["speech"][:, 0, 0].tolist() == wanted
    assert features["video"].shape == (2, 2, 2, 4), "a video keeps its frames"


def test_a_blind_model_hears_silence_and_sees_grey(questions):
    model = MediaModel()
    said = subject_of(model).generate(questions, 30, blind=True)
    assert said == ["speech1", "audio1", "video1 speech1", "video1", "speech1", ""]
    assert not model.given[0]["speech"].any()
    assert (model.given[0]["video"] == 128).all()


def test_sound_features_come_back_from_disk(questions, tmp_path):
    first, second = MediaModel(), MediaModel()
    expected = subject_of(first, cache=tmp_path / "cache").generate(questions, 30)
    assert subject_of(second, cache=tmp_path / "cache").generate(questions, 30) == expected
    assert (first.encoded, second.encoded) == (7, 0)


def test_what_the_model_does_not_take_is_refused(files):
    question = Question("q9", "seen", "a", files("p.png", [3]), choices=("a", "b"))
    with pytest.raises(ValueError, match=r"question 'q9' has <image>, but the model takes video, speech, audio"):
        subject_of(MediaModel()).score([question])


def test_a_broken_sound_is_named(files):
    with pytest.raises(ValueError, match=r"e\.wav cannot be read as speech \(empty\)"):
        subject_of(MediaModel()).generate([Question("1", "q", "a", speech=files("e.wav", []))], 3)


def test_files_of_every_kind_in_a_benchmark(tmp_path):
    (tmp_path / "a.wav").write_bytes(bytes([4, 4]))
    (tmp_path / "f.png").write_bytes(bytes([1]))
    lines = [
        '{"id": 1, "question": "said", "answer": "speech2", "speech": "a.wav"}',
        '{"id": 2, "question": "seen", "answer": "video1", "video": ["f.png", "f.png"]}',
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    spec = BenchmarkSpec(name="b", file=str(tmp_path / "b.jsonl"), kind="short_answer", max_new_tokens=30)
    first, second = load_questions(spec).questions
    assert first.media == {"speech": tmp_path / "a.wav"}
    assert second.media == {"video": (tmp_path / "f.png", tmp_path / "f.png")}
    row = evaluate(subject_of(MediaModel()), EvaluationSpec(benchmarks=[spec]), tmp_path / "out", "trained")[0]
    assert row.score == 1.0
    answers = (tmp_path / "out" / "trained" / "b.jsonl").read_text()
    assert f'"speech": "{tmp_path}/a.wav"' in answers
    assert f'"video": ["{tmp_path}/f.png", "{tmp_path}/f.png"]' in answers


def test_wrong_fields_are_told(tmp_path):
    lines = [
        '{"id": 1, "question": "<speech> q", "answer": "a"}',
        '{"id": 2, "question": "q", "answer": "a", "audio": "gone.wav"}',
        '{"id": 3, "question": "q", "answer": "a", "video": []}',
        '{"id": 4, "question": "q", "answer": "a", "speech": ["a.wav"]}',
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="has 4 errors") as caught:
        load_questions(BenchmarkSpec(name="b", file=str(tmp_path / "b.jsonl"), kind="short_answer"))
    for part in ("line 1: the question holds <speech> but", "line 2: no audio at", "line 3: field 'video' must be",
                 "line 4: field 'speech' must be text"):  # fmt: skip
        assert part in str(caught.value)
