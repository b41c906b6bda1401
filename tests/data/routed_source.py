"""A packed source with routing weights, three experts and a text tokenizer, for the tests of MoVA's data."""

from __future__ import annotations

import json

import numpy as np
import torch
from PIL import Image

from mmmoe.data.dataset import Dataset, Source
from mmmoe.data.pack import pack
from mmmoe.data.quarantine import Quarantine
from mmmoe.data.question_text import QuestionIds
from mmmoe.data.routed_images import RoutedImages
from mmmoe.data.shards import ShardSet
from mmmoe.data.spec import TemplateSpec
from mmmoe.data.template import Template
from mmmoe.data.transforms import ImageTransform

DESCRIPTIONS = {name: [f"{name} one.", f"{name} two."] for name in ("near", "far", "wide")}
ROUTINGS = ([1, 0, 0], [0, 0, 0], None, [0, 1, 1], [1, 1, 1], [0, 0, 1])
"""Of row i the i-th, over and over; None is a row without images."""
SIDES = {"image": 4, "image.near": 2, "image.far": 3, "image.wide": 5}
TRANSFORMS = {view: ImageTransform(side, (0.0,) * 3, (1.0,) * 3, "stretch") for view, side in SIDES.items()}
POSITIONS = {"image": 9, "image.glance": 4}
INSTRUCTION = "Choose."


def routed_row(number, folder):
    """Returns a row and writes its pictures; every fifth row has two."""
    routing = ROUTINGS[number % len(ROUTINGS)]
    count = 0 if routing is None else 1 + (number % 5 == 4)
    names = [f"{number}_{at}.png" for at in range(count)]
    for at, name in enumerate(names):
        Image.fromarray(np.full((6, 6, 3), (number, 40 * at, 7), dtype=np.uint8)).save(folder / name)
    value = " and ".join(["What colour ? <image>"] * count)
    turns = [("human", value), ("gpt", "red and yes"), ("human", "yes or no ?"), ("gpt", "no")]
    row = {"id": f"row{number}", "conversations": [{"from": role, "value": text} for role, text in turns]}
    return row | ({"image": names, "routing_weights": routing} if names else {})


def write_routed(folder, count=12, change=lambda number, row: row):
    """Packs a source below a folder and returns its shards' folder."""
    (folder / "images").mkdir(parents=True)
    rows = [change(number, routed_row(number, folder / "images")) for number in range(count)]
    (folder / "rows.json").write_text(json.dumps(rows))
    pack(folder / "rows.json", folder / "images", folder / "shards", samples_per_shard=5, domain="d")
    return folder / "shards"


def question_ids(tokenizer, folder, length=24):
    tokenizer.save_pretrained(folder)
    return QuestionIds(folder, length)


def guide_with(ids, **options):
    return RoutedImages(DESCRIPTIONS, ids, INSTRUCTION, **options)


def dataset_with(shards, tokenizer, guide, *, quarantine=None, features=None, transforms=TRANSFORMS, **options):
    template = Template(TemplateSpec(system="", max_length=options.pop("max_length", 200)), tokenizer)
    sources = [Source("routed", "d", ShardSet(shards), features or {})]
    return Dataset(
        sources,
        template,
        transforms,
        Quarantine(None, 0) if quarantine is None else quarantine,
        positions=POSITIONS,
        guide=guide,
        **options,
    )


def encode(pixels_ICHW):
    """A tower of one token: the mean colour."""
    return pixels_ICHW.mean((2, 3))[:, None]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
