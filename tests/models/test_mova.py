"""MoVA: a mixed batch is its rows one by one; experts that nobody is routed to are never asked."""

from __future__ import annotations

import pytest
import torch
from mova_toy import EXPERTS, FEW, FULL, GLANCE, MIXED, batch, row, toy_mova

from mmmoe.config.ids import IMAGE_ID, QUESTION_VIEW, ROUTING_VIEW
from mmmoe.config.load import load
from mmmoe.engine.skippable import hide_skippable, show_hidden
from mmmoe.models.build import build_model
from mmmoe.paths import project_root
from mmmoe.stages.spec import RunSpec


def spliced_of(model, given):
    names = ("input_ids_BT", "attention_mask_BT", "labels_BT", "media")
    return model._splice(*(given[name] for name in names), None)


def cached(model, given):
    """Returns the same batch with features in place of all that towers see."""
    media = dict(given["media"])
    beside = {view: media.pop(view) for view in (ROUTING_VIEW, QUESTION_VIEW)}
    return given | {"media": beside, "features": {view: model.encode(view, raw) for view, raw in media.items()}}


def test_positions_of_an_image_and_of_a_glance():
    model = toy_mova()
    assert model.views == ("image", "image.near", "image.far", "image.wide")
    assert [model.positions(size) for size in model.sizes] == [FULL, FEW]
    spliced = spliced_of(model, batch(*MIXED))
    images = (spliced.kind_BT == 1).sum(1)
    assert images.tolist() == [FEW, FULL, 0, FULL, 2 * FULL, FEW, 0]


def test_positions_at_the_papers_size():
    spec = load(project_root() / "configs/mova_7b.yaml", RunSpec)
    model = build_model(spec.model, seed=0, meta=True)
    assert [model.positions(size) for size in model.sizes] == [576, 144]
    assert len(model.experts) == 7


def test_losses_of_a_mixed_batch_are_those_of_its_rows():
    model = toy_mova().eval()
    together = model(**batch(*MIXED))
    alone = torch.cat([model(**batch(one)).nll_B for one in MIXED])
    torch.testing.assert_close(together.nll_B, alone, atol=1e-5, rtol=1e-5)
    backwards = model(**batch(*reversed(MIXED))).nll_B.flip(0)
    torch.testing.assert_close(backwards, alone, atol=1e-5, rtol=1e-5)
    assert len(set(together.nll_B.tolist())) == len(MIXED)


def test_answers_of_a_mixed_batch_are_those_of_its_rows():
    model = toy_mova()
    together = model.generate(**batch(*MIXED, left=True), max_new_tokens=6, eos_id=None)
    alone = [model.generate(**batch(one, left=True), max_new_tokens=6, eos_id=None)[0] for one in MIXED]
    assert together == alone
    assert len({tuple(answer) for answer in alone}) > 3


def test_generation_with_cache_equals_running_everything_anew():
    model, one = toy_mova().eval(), row((1, 1, 0), seed=5)
    ids, media = batch(one)["input_ids_BT"], batch(one)["media"]
    said = model.generate(ids, torch.ones_like(ids).bool(), media, max_new_tokens=5, eos_id=None)
    produced = []
    for _ in range(5):
        token = int(model.logits(ids, torch.ones_like(ids).bool(), media)[0, -1].argmax())
        produced.append(token)
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    assert said == [produced]


def test_every_expert_changes_its_own_rows_and_no_other():
    model, base = toy_mova().eval(), batch(*MIXED)
    before = model(**base).nll_B
    touched = {"near": [1, 4], "far": [4], "wide": [1, 4]}
    for name, rows in touched.items():
        media = dict(base["media"])
        media[f"image.{name}"] = media[f"image.{name}"] + 3.0
        changed = (model(**(base | {"media": media})).nll_B != before).nonzero()[:, 0].tolist()
        assert changed == rows, name


def test_experts_without_an_image_are_never_asked():
    model = toy_mova()

    def raised(*_):
        raise AssertionError("an expert that no image is routed to was run")

    for name in ("far", "wide"):
        model.tower_of(f"image.{name}").register_forward_pre_hook(raised)
    asked = []
    model.tower_of("image.near").register_forward_hook(lambda _, given, out: asked.append(len(out)))
    given = batch(row(GLANCE), row((1, 0, 0), seed=1), row(seed=2), row((1, 0, 0), (0, 0, 0), seed=3))
    model.train()(**given).loss(9, 4).backward()
    model.generate(**batch(row(GLANCE), row((1, 0, 0), seed=1), left=True), max_new_tokens=2, eos_id=None)
    assert asked == [2, 1]


def test_a_routing_pass_reads_neither_questions_nor_experts():
    model = toy_mova().eval()
    given = batch(row(GLANCE, seed=1), row(GLANCE, seed=6))
    before = model(**given).nll_B
    given["media"][QUESTION_VIEW] = torch.full_like(given["media"][QUESTION_VIEW], 7)
    assert torch.equal(model(**given).nll_B, before)
    given["media"][ROUTING_VIEW] = given["media"][ROUTING_VIEW] * 0
    assert not torch.isclose(model(**given).nll_B, before).any()


def test_the_questions_weigh_the_experts():
    model = toy_mova().eval()
    given = batch(row((1, 1, 1), seed=1))
    before = model(**given).nll_B
    given["media"][QUESTION_VIEW] = given["media"][QUESTION_VIEW].flip(1).clamp(min=3)
    assert not torch.isclose(model(**given).nll_B, before).any()


def test_features_stand_for_pictures():
    model, given = toy_mova(), batch(*MIXED)
    by_media = model(**given).nll_B
    found = cached(model, given)
    shapes = {view: tuple(part.shape) for view, part in found["features"].items()}
    assert shapes == {
        "image": (6, 64, 64),
        "image.near": (2, 16, 12),
        "image.far": (2, 6, 20),
        "image.wide": (2, 64, 6),
    }
    assert torch.equal(model(**found).nll_B, by_media)
    some = found | {"media": given["media"], "features": {"image.far": found["features"]["image.far"]}}
    assert torch.equal(model(**some).nll_B, by_media)


def test_images_of_one_row_are_told_apart():
    model = toy_mova().eval()
    given = batch(row((1, 0, 0), (0, 1, 0), seed=8))
    before = model(**given).nll_B
    swapped = {view: items.flip(0) for view, items in given["media"].items()}
    assert not torch.isclose(model(**(given | {"media": swapped})).nll_B, before).any()
    glances = batch(row(GLANCE, GLANCE, seed=8))
    spliced = spliced_of(model, glances)
    assert int((spliced.kind_BT == 1).sum()) == 2 * FEW


def test_a_row_cut_inside_its_image_keeps_its_beginning():
    model = toy_mova(max_positions=FULL - 2).eval()
    given = batch(row((1, 0, 1), seed=2), row(GLANCE, seed=1))
    output = model(**given)
    assert output.num_targets_B.tolist() == [0, 3]
    alone = model(**batch(row(GLANCE, seed=1)))
    torch.testing.assert_close(output.nll_B[1:], alone.nll_B, atol=1e-5, rtol=1e-5)


def test_features_that_do_not_fit_the_routing_are_refused():
    model, given = toy_mova(), batch(row((1, 0, 0)), row((1, 0, 0), seed=1))
    lost = dict(given["media"])
    lost["image.near"] = lost["image.near"][:1]
    with pytest.raises(ValueError, match=r"images routed to experts: .*'near': 2.* features are given of .*'near': 1"):
        model(**(given | {"media": lost}))
    with pytest.raises(ValueError, match=r"images of a MoVA come with image\.routing and image\.question"):
        model(**(given | {"media": {"image": given["media"]["image"]}}))
    more = given["input_ids_BT"].clone()
    more[0, 4] = IMAGE_ID
    with pytest.raises(ValueError, match="3 image placeholders and 2 image items"):
        model(**(given | {"input_ids_BT": more}))


def test_the_gates_of_a_batch_are_kept_for_a_report():
    model = toy_mova(layers=2, top_k=2).eval()
    model(**batch(*MIXED))
    assert [weight.shape for weight in model.gates] == [(6, len(EXPERTS))] * 2
    number = [(weight > 0).sum(1).tolist() for weight in model.gates]
    assert number == [[0, 2, 0, 1, 2, 0]] * 2
    model(**batch(row(seed=1)))
    assert model.gates == []
    # ZeRO 3 puts hooks on every module that hand on copies of lists.
    model.connector.register_forward_pre_hook(lambda _, given: tuple(x[:] if isinstance(x, list) else x for x in given))
    model(**batch(*MIXED))
    assert len(model.gates) == 2


def test_towers_work_outside_of_the_tree():
    model, given = toy_mova(), batch(*MIXED)
    before = model(**given).nll_B
    hidden = hide_skippable(model, torch.device("cpu"))
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"connector", "language"}
    assert torch.equal(model(**given).nll_B, before)
    show_hidden(hidden)
    assert sum(name.startswith("vision_experts.") for name, _ in model.named_parameters()) > 0
