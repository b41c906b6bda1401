"""Dialogues whose answers are images: labels, canvases, letters, tasks; and images of every sort."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from data_media import write_tar
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mmmoe.config.ids import CANVAS_VIEW, IGNORE_ID, IMAGE_ID, LETTERS_VIEW
from mmmoe.data.canvas import CanvasTransform
from mmmoe.data.collate import collate
from mmmoe.data.dataset import Dataset, Source, with_features
from mmmoe.data.encode import encode_missing
from mmmoe.data.letters import MOST, Letters
from mmmoe.data.pack import pack
from mmmoe.data.quarantine import Quarantine
from mmmoe.data.record import Turn
from mmmoe.data.shards import ShardSet
from mmmoe.data.slide_task import answer_task
from mmmoe.data.spec import TemplateSpec
from mmmoe.data.template import Template
from mmmoe.data.transforms import ImageTransform
from mmmoe.models.image_decoder.canvas import Canvas

SEE = ImageTransform(4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "stretch")
DRAW = CanvasTransform(4, 8)
VIEWS = {"image": SEE, CANVAS_VIEW: DRAW}
WRITE = 'Write the word "{word}".'


@pytest.fixture(scope="module")
def bytewise():
    """One id a letter, quotation marks among them."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator([], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def template(tokenizer, kind="vicuna_v1", draws=True, **changed):
    return Template(TemplateSpec(kind=kind, system="", **changed), tokenizer, draws=draws)


def shown(tokenizer, ids):
    return "".join(tokenizer.decode([i]) for i in ids).replace("Ġ", " ")


def turns(*texts):
    return [Turn(("human", "gpt")[number % 2], text) for number, text in enumerate(texts)]


def png(shade, size=(16, 8), mode="RGB", form="PNG"):
    stream = io.BytesIO()
    Image.new("RGB", size, (shade,) * 3).convert(mode).save(stream, form)
    return stream.getvalue()


DIALOGUES = {
    "write": ([WRITE.format(word="AB"), "<image>"], [60]),
    "edit": (["<image>\nFill in.", "<image>"], [10, 90]),
    "read": (["<image>\nWhat is it ?", "a word"], [30]),
    "text": (["What ?", "a word"], []),
    "two": ([WRITE.format(word="C"), "<image>", WRITE.format(word="DEF"), "<image>", "and ?", "end"], [120, 150]),
    "both": ([WRITE.format(word="G"), "<image>\n<image>"], [180, 210]),
}


def shard(folder, dialogues=DIALOGUES):
    members = []
    for name, (texts, shades) in dialogues.items():
        said = [{"from": turn.role, "value": turn.text} for turn in turns(*texts)]
        members.append((f"{name}.json", json.dumps({"conversations": said}).encode()))
        members += [(f"{name}.{number}.png", png(shade)) for number, shade in enumerate(shades)]
    return write_tar(folder / "all.tar", members)


def dataset(folder, tokenizer, *, draws=True, views=VIEWS, dialogues=DIALOGUES, budget=0, **options):
    sources = [Source("all", "d", ShardSet(shard(folder, dialogues)))]
    made = template(tokenizer, draws=draws, max_length=options.pop("max_length", 2048))
    return Dataset(sources, made, views, Quarantine(None, budget), **options)


@pytest.mark.parametrize(("kind", "as_released"), [("vicuna_v1", False), ("vicuna_v1", True), ("plain", False)])
def test_an_image_of_an_answer_is_its_own_label(bytewise, kind, as_released):
    made = template(bytewise, kind, as_released=as_released)
    encoded = made.encode(turns("<image>\nFill in.", "<image>"))
    at = [place for place, token in enumerate(encoded.input_ids) if token == IMAGE_ID]
    assert [encoded.labels[place] for place in at] == [IGNORE_ID, IMAGE_ID]
    assert encoded.drawn == [1]
    unasked = template(bytewise, kind, draws=False, as_released=as_released).encode(
        turns("<image>\nFill in.", "<image>")
    )
    assert unasked.input_ids == encoded.input_ids
    assert IMAGE_ID not in unasked.labels
    assert unasked.drawn == []


@pytest.mark.parametrize("kind", ["vicuna_v1", "plain"])
@pytest.mark.parametrize("asked", ["Write.", "<image>\nFill in."])
def test_a_prompt_to_draw_is_what_stood_before_the_image(bytewise, kind, asked):
    made = template(bytewise, kind)
    learned = made.encode(turns(asked, "<image>"))
    last = len(learned.input_ids) - 1 - learned.input_ids[::-1].index(IMAGE_ID)
    assert made.prompt_to_draw(turns(asked)) == learned.input_ids[:last]
    with pytest.raises(ValueError, match="ends with a human turn"):
        made.prompt_to_draw(turns(asked, "<image>"))


def test_canvases_are_the_images_of_answers(bytewise, tmp_path):
    data = dataset(tmp_path, bytewise)
    for index, (name, (_, shades)) in enumerate(DIALOGUES.items()):
        sample = data.get(0, index)
        drawn = {"write": [60], "edit": [90], "two": [120, 150], "both": [180, 210]}.get(name, [])
        assert sample.input_ids.count(IMAGE_ID) == len(shades)
        assert sample.labels.count(IMAGE_ID) == len(drawn)
        assert sample.media.get("image", torch.zeros(0)).shape[0] == len(shades)
        assert (CANVAS_VIEW in sample.media) == (LETTERS_VIEW in sample.media) == bool(drawn)
        if drawn:
            canvas = sample.media[CANVAS_VIEW]
            assert canvas.shape == (len(drawn), 3, 4, 8)
            torch.testing.assert_close(canvas.mean((1, 2, 3)), torch.tensor(drawn) / 127.5 - 1)
            assert float(canvas.min()) >= -1
    batch = collate([data.get(0, index) for index in range(len(DIALOGUES))], 3)
    assert len(batch.media["image"]) == 8
    assert len(batch.media[CANVAS_VIEW]) == int((batch.labels_BT == IMAGE_ID).sum()) == 6
    assert batch.media[LETTERS_VIEW].shape == (6, MOST)


def test_a_family_that_does_not_draw_has_no_targets_of_them(bytewise, tmp_path):
    data = dataset(tmp_path, bytewise, draws=False, views={"image": SEE})
    samples = [data.get(0, index) for index in range(len(DIALOGUES))]
    assert all(IMAGE_ID not in sample.labels for sample in samples)
    assert all(sample.media.keys() <= {"image"} for sample in samples)
    assert [len(sample.media.get("image", ())) for sample in samples] == [1, 2, 1, 0, 2, 2]


def test_kept_canvases_are_what_is_made_of_the_pictures(bytewise, tmp_path):
    plain, canvas = dataset(tmp_path, bytewise), Canvas(None, (4, 8), 2)
    sources = with_features(plain.sources, tmp_path / "cache", {CANVAS_VIEW: canvas.key})
    [store] = sources[0].features.values()
    assert encode_missing(store, canvas.encode, DRAW, batch=3) == 8
    kept = Dataset(sources, plain.template, {"image": SEE}, Quarantine(None, 0))
    for index in range(len(DIALOGUES)):
        ours, theirs = kept.get(0, index), plain.get(0, index)
        assert (ours.input_ids, ours.labels) == (theirs.input_ids, theirs.labels)
        assert ours.media.keys() == theirs.media.keys() - {CANVAS_VIEW}
        assert all(torch.equal(ours.media[view], theirs.media[view]) for view in ours.media)
        if CANVAS_VIEW in theirs.media:
            wanted = canvas.encode(theirs.media[CANVAS_VIEW])
            torch.testing.assert_close(ours.features[CANVAS_VIEW].float(), wanted, atol=1e-3, rtol=1e-3)
        else:
            assert ours.features == {}


def test_letters_are_those_in_quotation_marks(bytewise, tmp_path):
    data = dataset(tmp_path, bytewise)
    found = {}
    for index, name in enumerate(DIALOGUES):
        sample = data.get(0, index)
        rows = sample.media.get(LETTERS_VIEW, torch.zeros(0, MOST))
        found[name] = [shown(bytewise, [sample.input_ids[place] for place in row if place >= 0]) for row in rows]
    assert found == {"write": ["AB"], "edit": [""], "read": [], "text": [], "two": ["C", "DEF"], "both": ["G", "G"]}


def test_the_last_quotation_is_written_and_a_long_one_cut(bytewise):
    letters = template(bytewise).letters
    cases = {
        'In place of "OLD" write "NEW".': "NEW",
        'One mark " alone.': "",
        "None.": "",
        'Nothing "".': "",
        'Write "' + "x" * 50 + '".': "x" * MOST,
        'Write "é".': "Ã©",
    }
    for text, wanted in cases.items():
        ids = letters._tokenizer.encode(text, add_special_tokens=False)
        places = letters.padded(ids)
        assert places.shape == (MOST,)
        assert shown(bytewise, [ids[place] for place in places if place >= 0]) == wanted
        assert bool((places.diff()[: max(0, len(wanted) - 1)] == 1).all())


def test_a_rule_gives_each_sample_its_task(bytewise, tmp_path):
    data = dataset(tmp_path, bytewise, task=answer_task)
    batch = collate([data.get(0, index) for index in range(len(DIALOGUES))], 3)
    assert batch.task_B.tolist() == [0, 0, 1, 1, 0, 0]
    assert batch.inputs()["task_B"] is batch.task_B
    unknown = collate([dataset(tmp_path / "own", bytewise).get(0, 0)], 3)
    assert unknown.task_B.tolist() == [-1]


def test_an_image_beyond_the_longest_sequence_is_not_drawn(bytewise, tmp_path):
    whole = dataset(tmp_path, bytewise).get(0, 4)
    places = [place for place, label in enumerate(whole.labels) if label == IMAGE_ID]
    # Of the two images to be drawn the second is beyond: by ids, and by the positions that the model gives them.
    cut = dataset(tmp_path / "ids", bytewise, max_length=places[1]).get(0, 4)
    assert (len(cut.media["image"]), len(cut.media[CANVAS_VIEW])) == (1, 1)
    for room, drawn in ((places[1] + 4, 1), (places[1] + 5, 2), (places[0], 0)):
        kept = dataset(tmp_path / str(room), bytewise, max_positions=room, positions={"image": 5})
        sample = kept.get(0, 4)
        assert len(sample.media["image"]) == 2
        assert len(sample.media.get(CANVAS_VIEW, ())) == sample.labels.count(IMAGE_ID) == drawn


@pytest.mark.parametrize(
    ("texts", "shades", "said"),
    [
        (["Write.", "<image>"], [], r"1 <image> in the text, but 0 images"),
        (["Write.", "<image>"], [1, 2], r"1 <image> in the text, but 2 images"),
        (["<image>\nFill in.", "<image>"], [1], r"2 <image> in the text, but 1 images"),
    ],
)
def test_marks_that_do_not_fit_are_told(bytewise, tmp_path, texts, shades, said):
    data = dataset(tmp_path, bytewise, dialogues={"bad": (texts, shades)}, budget=1)
    assert data.get(0, 0) is None
    with pytest.raises(ValueError, match=said):
        dataset(tmp_path / "strict", bytewise, dialogues={"bad": (texts, shades)}).get(0, 0)
    folder = tmp_path / "images"
    folder.mkdir()
    for shade in shades:
        (folder / f"{shade}.png").write_bytes(png(shade))
    row = {"conversations": [{"from": turn.role, "value": turn.text} for turn in turns(*texts)]}
    row |= {"image": [f"{shade}.png" for shade in shades]} if shades else {}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    with pytest.raises(ValueError, match=rf"1 unusable rows(.|\n)*row 0: {said}"):
        pack(tmp_path / "rows.json", folder, tmp_path / "packed", samples_per_shard=4, domain="d")


@pytest.mark.parametrize(
    ("mode", "form"), [("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("1", "PNG"), ("LA", "PNG")]
)
def test_pictures_of_every_mode(mode, form):
    shade = 255 if mode == "1" else 200
    pixels = DRAW(png(shade, mode=mode, form=form))
    assert pixels.shape == (3, 4, 8)
    torch.testing.assert_close(pixels, torch.full((3, 4, 8), shade / 127.5 - 1), atol=0.06, rtol=0)


@pytest.mark.parametrize("transform", [SEE, DRAW])
def test_sixteen_bits_keep_their_shade(transform):
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 16), 40_000, dtype=np.uint16)).save(stream, "PNG")
    low, high = (0.0, 1.0) if transform is SEE else (-1.0, 1.0)
    wanted = low + (high - low) * 40_000 / 65_535
    torch.testing.assert_close(float(transform(stream.getvalue()).mean()), wanted, atol=0.01, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_pictures_of_one_pixel(size):
    pixels = DRAW(png(51, size=size))
    torch.testing.assert_close(pixels, torch.full((3, 4, 8), -0.6))


def test_what_is_no_picture_is_told():
    with pytest.raises(ValueError, match="cannot be decoded"):
        DRAW(b"not a picture")
    with pytest.raises(ValueError, match="not a list of frames"):
        DRAW((png(1), png(2)))
    assert torch.equal(DRAW.blank(), torch.zeros(3, 4, 8))
    assert DRAW.key == "canvas=4x8"


def test_the_last_pair_of_marks_counts_and_what_does_not_fit_on_cells_is_said(bytewise):
    letters = Letters(bytewise)

    def ids(text):
        return bytewise.encode(text, add_special_tokens=False)

    def quoted(text):
        return shown(bytewise, [ids(text)[place] for place in letters.quoted(ids(text))])

    assert quoted('"AB" and "CD" on 5" paper') == "CD"
    assert quoted('5" paper') == quoted("AB") == ""
    assert letters.problem(ids('the word "ABC"'), 3) is None
    assert letters.problem(ids("no word"), 3) is None
    assert "'ABCD' between quotation marks has 4 letters, but 3 fit" in letters.problem(ids('"ABCD"'), 3)
