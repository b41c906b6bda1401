"""A model with three vision experts whose every loss and answer is known by hand: what a shade gains from an expert."""

import os

import torch
from evaluation_fakes import FakeModel, FakeTemplate, FakeTransform

from mmmoe import dist
from mmmoe.config.ids import IMAGE_ID, QUESTION_VIEW, ROUTING_VIEW
from mmmoe.data.routed_images import RoutedImages
from mmmoe.evaluation.routing import judge_routing
from mmmoe.evaluation.subject import Subject
from mmmoe.models.output import ModelOutput

EXPERTS = ("near", "far", "wide")
GAINS = {3: (2.0, -1.0, 0.5), 9: (-1.0, -1.0, -1.0), 20: (0.0, 0.25, 0.0), 128: (0.0, 0.0, 3.0)}
"""By shade, by how much each expert lowers the loss of any answer; 128 is the grey of a blind run."""
SAID = {3: "A, B", 9: "C", 20: "none", 128: "B."}
"""By shade, the answer of the routing pass."""


class RoutedFake(FakeModel):
    """Answers with the shade and the initials of the experts that look at it."""

    views = ("image", *(f"image.{name}" for name in EXPERTS))

    def tower_of(self, view):
        assert view in self.views
        return self.tower

    def encode(self, view, media):
        assert view in self.views
        self.encoded += len(media)
        self.calls.append((view, len(media)))
        return media.mean((1, 2, 3)).view(-1, 1, 1).expand(-1, 2, 4)

    def seen(self, ids_BT, media, features):
        """Returns of each row its shade and routing, both None without a picture, and checks what came with it."""
        found, number = [], 0
        waiting = {view: list(items[:, 0, 0].tolist()) for view, items in (features or {}).items()}
        for ids in ids_BT:
            if not (ids == IMAGE_ID).any():
                found.append((None, None))
                continue
            shade, routing = waiting["image"].pop(0), media[ROUTING_VIEW][number].tolist()
            for name, bit in zip(EXPERTS, routing, strict=True):
                if bit == 1:
                    assert waiting[f"image.{name}"].pop(0) == shade, "an expert sees the picture that it is routed to"
            found.append((int(shade), tuple(routing)))
            number += 1
        assert not any(waiting.values()), "experts see nothing else"
        assert media is None or len(media[ROUTING_VIEW]) == len(media[QUESTION_VIEW]) == number
        return found

    def forward(self, input_ids_BT, attention_mask_BT, labels_BT=None, media=None, features=None):
        only = {view: items for view, items in (features or {}).items() if view == "image"} or None
        output = super().forward(input_ids_BT, attention_mask_BT, labels_BT, None, only)
        gains = [
            0.0 if shade is None else sum(gain for gain, bit in zip(GAINS[shade], routing, strict=True) if bit == 1)
            for shade, routing in self.seen(input_ids_BT, media, features)
        ]
        return ModelOutput(output.nll_B - torch.tensor(gains), output.num_targets_B)

    def generate(self, input_ids_BT, attention_mask_BT, media=None, features=None, *, max_new_tokens, eos_id, pad_id):
        rows = []
        for shade, routing in self.seen(input_ids_BT, media, features):
            if shade is None:
                said = "?"
            elif routing == (-1, -1, -1):
                said = SAID[shade]
            else:
                said = str(shade) + "".join(name[0] for name, bit in zip(EXPERTS, routing, strict=True) if bit)
            rows.append([ord(c) for c in said][:max_new_tokens])
        return rows


def routed_subject(batch=64):
    guide = RoutedImages({name: [f"sees {name}"] for name in EXPERTS}, lambda asked: torch.ones(1, 4), "Choose.")
    transforms = dict.fromkeys(RoutedFake.views, FakeTransform())
    return Subject(RoutedFake(), FakeTemplate(), transforms, torch.device("cpu"), batch=batch, guide=guide)


def judge_in_process(rank, world, port, spec, folder):
    """Judges the routing as one of several processes."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.start()
    (folder / f"rank{rank}.txt").write_text(repr(judge_routing(routed_subject(), spec, folder)))
    dist.stop()
