"""Towers say how media reach them; `draw` makes the transforms and names the features accordingly."""

from types import SimpleNamespace

import pytest

from mmmoe.config.ids import CANVAS_VIEW
from mmmoe.data.media import KINDS
from mmmoe.data.record import Turn
from mmmoe.stages.draw import feature_key, task_rule, transforms_of

IMAGE = SimpleNamespace(key="clip", image_size=6, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), fit="stretch")
SPEECH = SimpleNamespace(key="whisper", sample_rate=16_000, num_mels=20, chunk_seconds=6.0, max_chunks=3)
AUDIO = SimpleNamespace(
    key="beats", sample_rate=16_000, num_mels=24, chunk_seconds=6.0, max_frames=598, mean=-4.0, std=4.5, max_chunks=3
)


class Model:
    kinds = views = tuple(KINDS)
    frames = 5
    canvas = None

    def tower_of(self, kind):
        return {"image": IMAGE, "video": IMAGE, "speech": SPEECH, "audio": AUDIO}[kind]


def test_transforms_follow_the_towers():
    made = transforms_of(Model())
    assert {kind: tuple(transform.blank().shape) for kind, transform in made.items()} == {
        "image": (3, 6, 6),
        "video": (5, 3, 6, 6),
        "speech": (1, 20, 600),
        "audio": (1, 598, 24),
    }


def test_features_are_named_by_tower_and_transform():
    model = Model()
    keys = {kind: feature_key(model, kind, transform) for kind, transform in transforms_of(model).items()}
    assert keys["image"].startswith("clip ")
    assert "fit=" in keys["image"]
    assert len(set(keys.values())) == 4
    model.frames = 8
    assert feature_key(model, "video", transforms_of(model)["video"]) != keys["video"]


@pytest.mark.parametrize(
    ("gate", "tasks"), [("keyword", [0, 1, 0]), ("label", [0, 0, 1]), ("learned", [0, 0, 1]), (None, None)]
)
def test_who_says_what_a_dialogue_asks_for(gate, tasks):
    slide = None if gate is None else SimpleNamespace(spec=SimpleNamespace(gate=gate))
    rule = task_rule(SimpleNamespace(slide=slide))
    asked = [("Generate an image of x.", "<image>"), ("Draw x.", "<image>"), ("Fill the masked word.", "x")]
    dialogues = [[Turn("human", question), Turn("gpt", answer)] for question, answer in asked]
    assert tasks == (None if rule is None else [rule(turns) for turns in dialogues])


def test_a_family_that_draws_has_a_canvas():
    model = Model()
    model.canvas, model.views = (4, 8), ("image", CANVAS_VIEW)
    made = transforms_of(model)
    assert tuple(made[CANVAS_VIEW].blank().shape) == (3, 4, 8)
    assert list(made) == ["image", CANVAS_VIEW]
