"""Towers say how media reach them; `draw` makes the transforms and names the features accordingly."""

from types import SimpleNamespace

from mmmoe.data.media import KINDS
from mmmoe.stages.draw import feature_key, transforms_of

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
