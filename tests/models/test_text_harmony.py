"""TextHarmony: a mixed batch is its rows one by one, answers alone are drawn, and no drawing sees itself."""

from __future__ import annotations

import pytest
import torch
from harmony_toy import MIXED, SLOTS, ToyCells, batch, prompt, row, toy_harmony
from image_decoder_toy import COLUMNS, HEIGHT

from mmmoe.config.ids import CANVAS_VIEW, IGNORE_ID, IMAGE_ID, LETTERS_VIEW
from mmmoe.models.image_decoder import decoder
from mmmoe.models.towers.simple_pyramid import SimplePyramidTower

HARD = {"gate": "label", "init": "lora"}
LEARNED = {"gate": "learned", "gate_weight": 0.5, "init": "lora"}
DRAWS = {"steps": 2, "guidance": 2.0}


class EvenNoise:
    """torch for the decoder, but every image gets the same noise at the same step, and none is drawn from nothing."""

    def __getattr__(self, name):
        return getattr(torch, name)

    def randn_like(self, like):
        return torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(9)).expand(like.shape).clone()

    def randint(self, high, size, device=None):
        return torch.full(size, high // 3, device=device)

    def rand(self, size, device=None):
        return torch.full((size,), 0.5, device=device)


@pytest.fixture
def even_noise(monkeypatch):
    monkeypatch.setattr(decoder, "torch", EvenNoise())


def spliced_of(model, given):
    names = ("input_ids_BT", "attention_mask_BT", "labels_BT", "media")
    return model._splice(*(given[name] for name in names), None)


@pytest.mark.parametrize("slide", [None, HARD, LEARNED])
def test_losses_of_a_mixed_batch_are_those_of_its_rows(slide, even_noise):
    model = toy_harmony(slide=slide)
    together = model(**batch(*MIXED, tasks=slide is not None))
    alone = [model(**batch(one, tasks=slide is not None)) for one in MIXED]
    torch.testing.assert_close(together.nll_B, torch.cat([one.nll_B for one in alone]), atol=1e-4, rtol=1e-4)
    for name, term_B in together.auxiliary.items():
        found_B = torch.cat([one.auxiliary[name] for one in alone])
        torch.testing.assert_close(term_B, found_B, atol=1e-4, rtol=1e-4)
    assert set(together.auxiliary) == {"image"} | ({"gate"} if slide is LEARNED else set())
    assert together.num_targets_B.tolist() == [1, 3, 3, 1, 5, 1]
    image_B = together.auxiliary["image"]
    assert image_B[[1, 2]].tolist() == [0.0, 0.0], "nothing is drawn where somebody reads"
    assert image_B[5] == 0, "an image that nothing is said of is no task"
    assert bool((image_B[[0, 3, 4]] > 0).all())
    assert together.weights["image"] == 10.0


def test_two_images_of_an_answer_count_each(even_noise):
    """The second image of a dialogue is drawn from all that stands before it, the first image included."""
    model, both = toy_harmony(), row("text", "draw", "text", "draw", seed=5)
    first = row("text", "draw", seed=5)
    loss = {name: model(**batch(one)).auxiliary["image"] for name, one in (("both", both), ("first", first))}
    other = batch(both)
    other["media"]["image"][0] += 1.0  # what the first image shows changes the second alone
    changed = model(**other).auxiliary["image"]
    assert loss["both"] > loss["first"]
    assert changed != loss["both"]
    other["media"]["image"][1] += 1.0  # no image is drawn from itself
    assert torch.equal(model(**other).auxiliary["image"], changed)


@pytest.mark.parametrize("changed", ["image", "behind"])
def test_an_image_is_drawn_from_what_stands_before_it(changed, even_noise):
    model, given = toy_harmony(), batch(row("text", "draw", "text", "say", seed=5))
    before = model(**given)
    if changed == "image":
        given["media"]["image"] = given["media"]["image"] + 3.0
    else:
        given["input_ids_BT"][:, 7:] = given["input_ids_BT"][:, 7:].flip(1)
    after = model(**given)
    assert torch.equal(before.auxiliary["image"], after.auxiliary["image"])
    assert not torch.isclose(before.nll_B, after.nll_B).any()
    given["input_ids_BT"][:, 2] = 4
    assert not torch.isclose(model(**given).auxiliary["image"], before.auxiliary["image"]).any()


def test_labels_hold_neither_slots_nor_padding():
    model, given = toy_harmony(), batch(*MIXED)
    spliced = spliced_of(model, given)
    labels_BT = spliced.labels_BT
    is_target_BT = labels_BT != IGNORE_ID
    assert not is_target_BT[~spliced.mask_BT].any()
    of_image_BT = spliced.kind_BT == 1
    begins_BT = is_target_BT & of_image_BT
    assert set(labels_BT[begins_BT].tolist()) == {model.start_id} == {50}
    assert bool(spliced.is_first_BT[begins_BT].all())
    assert begins_BT.sum(1).tolist() == [1, 0, 0, 1, 2, 1]
    assert (of_image_BT.sum(1) == torch.tensor([1, 1, 0, 2, 2, 1]) * (1 + SLOTS)).all()
    assert int(labels_BT.min()) == IGNORE_ID
    assert bool(((labels_BT >= 0) == is_target_BT).all())
    assert int(labels_BT.max()) == model.start_id


def test_a_synchroniser_changes_nothing_at_first():
    """The gate's tanh is 0 (sheet, i.5): the maps of images are not seen."""
    model, given = toy_harmony(stir=False), batch(*MIXED)
    before = model(**given).nll_B
    model.memory.show = lambda *_: None
    assert torch.equal(model(**given).nll_B, before)
    del model.memory.show
    layer = model.language.get_decoder().layers[0]
    with torch.no_grad():
        layer.gate.fill_(1.0)
    assert not torch.isclose(model(**given).nll_B[[1, 4]], before[[1, 4]]).any()


EMPTY = {"input_ids_BT": torch.zeros(0, 4, dtype=torch.int64), "attention_mask_BT": torch.zeros(0, 4).bool(),
         "labels_BT": torch.zeros(0, 4, dtype=torch.int64)}  # fmt: skip


@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("case", ["mixed", "read", "text", "empty"])
def test_every_parameter_takes_part_in_every_batch(case, is_trained):
    model = toy_harmony(slide=LEARNED)
    model.tower.requires_grad_(is_trained)
    rows = {"mixed": MIXED, "read": MIXED[1:3], "text": MIXED[2:3], "empty": ()}[case]
    given = batch(*rows, tasks=True) if rows else EMPTY | {"task_B": torch.zeros(0, dtype=torch.int64)}
    output = model.train()(**given)
    assert len(output.nll_B) == len(output.auxiliary["image"]) == len(rows)
    output.loss(3, 2).backward()
    trained = {name: part for name, part in model.named_parameters() if part.requires_grad}
    assert any(name.startswith("tower.") for name in trained) == is_trained
    assert [name for name, part in trained.items() if part.grad is None] == []
    assert all(bool(part.grad.isfinite().all()) for part in trained.values())
    reached = {name.split(".")[0] for name, part in trained.items() if part.grad.any()}
    if case == "mixed":
        assert reached >= {"decoder", "connector", "language", "text_head", "start_D", "slide"}
    else:
        assert "decoder" not in reached, "nothing is drawn"
    if case == "empty":
        assert reached == set()


@pytest.mark.parametrize("is_trained", [False, True])
def test_every_batch_runs_the_same_modules_in_the_same_order(is_trained):
    """Where weights are sharded, processes hand them to one another module by module, forwards and backwards."""

    def told(rows):
        model, calls = toy_harmony(slide=LEARNED).train(), []
        model.tower.requires_grad_(is_trained)
        for name, module in model.named_modules():
            if not name.startswith("tower") or is_trained:
                module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
                module.register_forward_hook(lambda _, given, out, name=name: seen_backwards(out, name, calls))
        given = batch(*rows, tasks=True) if rows else EMPTY | {"task_B": torch.zeros(0, dtype=torch.int64)}
        model(**given).loss(3, 2).backward()
        return calls

    def seen_backwards(out, name, calls):
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda _: calls.append(f"{name} backwards"))

    mixed = told(MIXED)
    assert len(mixed) > 800
    for rows in (*((one,) for one in MIXED), ()):
        assert told(rows) == mixed


def test_gradients_of_slide_experts_are_those_of_their_task():
    model = toy_harmony(slide=HARD)
    model.train()(**batch(*MIXED[1:3], tasks=True)).loss(3, 2).backward()
    factors = [(n, p.grad) for n, p in model.named_parameters() if ".experts." in n]
    assert factors
    for name, grad in factors:
        assert not grad[0].any(), f"{name}: nothing was to be drawn"
        assert grad[1].any()
        assert grad[2].any()


def test_a_row_cut_before_its_image_draws_nothing(even_noise):
    one = row("text", "draw", "say", seed=5)
    at = one.ids.index(IMAGE_ID)
    for longest, drawn in ((at, 0), (at + 1, 1), (at + 2, 1)):
        model = toy_harmony(max_positions=longest)
        given = batch(one, row("text", "draw", seed=2))
        if not drawn:
            with pytest.raises(ValueError, match="begin 0 images, but 2 are given"):
                model(**given)
            given["media"] = {"image": given["media"]["image"]}
        output = model(**given)
        whole = toy_harmony()(**batch(one, row("text", "draw", seed=2)))
        wanted = whole.auxiliary["image"] * drawn
        torch.testing.assert_close(output.auxiliary["image"], wanted, atol=1e-5, rtol=1e-5)
        assert output.num_targets_B.tolist() == [drawn, drawn]


def test_images_that_a_cut_row_lost_do_not_shift_those_of_the_next(even_noise):
    """Two of three images of the first row are gone; the second row still sees its own."""
    long, other = row("text", "image", "image", "image", "say", seed=8), row("image", "text", "draw", seed=4)
    room = len(other.ids) + 2 * SLOTS
    model = toy_harmony(max_positions=room)
    together = model(**batch(long, other))
    alone = model(**batch(other))
    torch.testing.assert_close(together.nll_B[1:], alone.nll_B, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.auxiliary["image"][1:], alone.auxiliary["image"], atol=1e-5, rtol=1e-5)
    assert together.num_targets_B[0] == 0


@pytest.mark.parametrize("change", [-1, 1])
def test_another_number_of_images_to_be_drawn_is_refused(change):
    model, given = toy_harmony(), batch(*MIXED)
    canvas = given["media"][CANVAS_VIEW]
    given["media"][CANVAS_VIEW] = canvas[:-1] if change < 0 else torch.cat([canvas, canvas[:1]])
    given["media"].pop(LETTERS_VIEW)
    with pytest.raises(ValueError, match=rf"begin 5 images, but {5 + change} are given to be drawn \(image.canvas\)"):
        model(**given)


@pytest.mark.parametrize("tower", [None, ToyCells], ids=["pyramid", "simple pyramid"])
def test_features_stand_for_pictures(even_noise, tower):
    model, given = toy_harmony(tower=tower and SimplePyramidTower(tower())), batch(*MIXED)
    by_media = model(**given)
    assert (by_media.auxiliary["image"] > 0).any()
    media = dict(given["media"])
    features = {view: model.encode(view, media.pop(view)) for view in model.views}
    found = model(**(given | {"media": media, "features": features}))
    assert torch.equal(found.nll_B, by_media.nll_B)
    torch.testing.assert_close(found.auxiliary["image"], by_media.auxiliary["image"])


def drawn(model, *prompts, seeds, **changed):
    """Draws a batch of prompts, each with its letters."""
    given = batch(*(one for one, _ in prompts), left=True)
    letters = torch.stack([places for _, places in prompts])
    given["media"] = {**(given["media"] or {}), LETTERS_VIEW: letters}
    return model.draw(**given, seeds=seeds, **(DRAWS | changed))


PROMPTS = (
    prompt("text", seed=1),
    prompt("image", "text", "text", seed=2),
    prompt("text", "text", "text", seed=3),
    prompt("image", "text", "image", "text", seed=4, letters=False),
)


@pytest.mark.parametrize(("slide", "embedded"), [(None, False), (None, True), (LEARNED, False)])
def test_drawings_of_a_batch_are_those_one_by_one(slide, embedded):
    """Rows have other lengths, so that most are padded on the left; letters stand where they stood."""
    model = toy_harmony(slide=slide, embedded_context=embedded)
    seeds = [5, 6, 7, 8]
    together = drawn(model, *PROMPTS, seeds=seeds)
    assert together.shape == (4, 3, HEIGHT, COLUMNS)
    for number, one in enumerate(PROMPTS):
        alone = drawn(model, one, seeds=seeds[number : number + 1])
        torch.testing.assert_close(alone[0], together[number], atol=1e-4, rtol=1e-4)
    backwards = drawn(model, *reversed(PROMPTS), seeds=seeds[::-1]).flip(0)
    torch.testing.assert_close(backwards, together, atol=1e-4, rtol=1e-4)


def test_what_a_drawing_depends_on():
    model = toy_harmony()
    one, letters = PROMPTS[1]
    first = drawn(model, (one, letters), seeds=[5])
    assert torch.equal(drawn(model, (one, letters), seeds=[5]), first)
    assert not torch.allclose(drawn(model, (one, letters), seeds=[6]), first, atol=1e-3)
    assert not torch.allclose(drawn(model, (one, letters.roll(1)), seeds=[5]), first, atol=1e-4)
    other = row("image", "text", "text", seed=2)
    other.images[0] = other.images[0] + 2.0
    assert not torch.allclose(drawn(model, (other, letters), seeds=[5]), first, atol=1e-4)
    assert not torch.allclose(drawn(model, (one, letters), seeds=[5], steps=3), first, atol=1e-4)
    assert model.training
    length = len(one.ids) + SLOTS + 1
    for longest, is_enough in ((length, True), (length - 1, False)):
        model.max_positions = longest
        if is_enough:
            assert torch.equal(drawn(model, (one, letters), seeds=[5]), first)
            continue
        with pytest.raises(ValueError, match=f"a prompt of {length} positions is longer than the model's {longest}"):
            drawn(model, (one, letters), seeds=[5])
    model.max_positions = 128
    with pytest.raises(ValueError, match="1 images are to be drawn with 2 seeds"):
        drawn(model, (one, letters), seeds=[5, 6])


@pytest.mark.parametrize("embedded", [False, True])
def test_a_drawing_has_the_context_that_training_gave_it(monkeypatch, even_noise, embedded):
    """What the decoder is told of a prompt is what it was told in training, letters and the image before included."""
    told = []

    def told_of(name):
        def call(hidden_ILD, mask_IL, *rest, **_):
            previous, glyph = rest[-2:]
            told.append((hidden_ILD, mask_IL, previous, glyph))
            return hidden_ILD.sum((1, 2)) if name == "loss" else torch.zeros(len(hidden_ILD), 3, HEIGHT, COLUMNS)

        return call

    model = toy_harmony(embedded_context=embedded).eval()
    for name in ("loss", "draw"):
        monkeypatch.setattr(model.decoder, name, told_of(name))
    learned, (asked, letters) = row("image", "text", "draw", seed=4), prompt("image", "text", seed=4)
    learned.letters = [letters]
    assert learned.ids[:-1] == asked.ids
    model(**batch(learned))
    long, long_letters = prompt("text", "text", "text", seed=3)
    drawn(model, (asked, letters), (long, long_letters), seeds=[1, 2])
    (hidden, mask, previous, glyph), (hidden_2, mask_2, previous_2, glyph_2) = told
    length = int(mask.sum())
    assert mask_2[0].sum() == length
    torch.testing.assert_close(hidden_2[0, :length], hidden[0, :length], atol=1e-5, rtol=1e-5)
    assert torch.equal(glyph_2[0], glyph[0])
    assert (glyph_2[1] >= 0).sum() == 3
    assert previous_2.mask_I.tolist() == [True, False]
    for ours, theirs in zip(previous_2.maps, previous.maps, strict=True):
        torch.testing.assert_close(ours[0], theirs[0])


def test_an_embedded_context_adds_the_normalised_embeddings(monkeypatch):
    """The other weights are alike, so the difference of the contexts is what was embedded, the latest first."""
    one, letters = PROMPTS[0]
    told = []
    for embedded in (False, True):
        model = toy_harmony(embedded_context=embedded)
        draw = lambda hidden, *_, **__: told.append(hidden) or torch.zeros(1, 3, HEIGHT, COLUMNS)  # noqa: E731
        monkeypatch.setattr(model.decoder, "draw", draw)
        drawn(model, (one, letters), seeds=[5])
    ids = torch.tensor(one.ids)
    rows = torch.cat([model.language.get_input_embeddings()(ids), model.start_D[None]]).flip(0)
    normal = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(told[1][0] - told[0][0], normal, atol=1e-4, rtol=1e-4)


ASKED = tuple(one for one, _ in PROMPTS)


def test_answers_of_a_mixed_batch_are_those_of_its_rows():
    model = toy_harmony(slide=LEARNED)
    together = model.generate(**batch(*ASKED, left=True), max_new_tokens=6, eos_id=None)
    alone = [model.generate(**batch(one, left=True), max_new_tokens=6, eos_id=None)[0] for one in ASKED]
    assert together == alone


@pytest.mark.parametrize("beams", [1, 3])
def test_a_text_ends_where_an_image_begins(beams):
    model = toy_harmony()
    said = model.generate(**batch(*ASKED, left=True), max_new_tokens=6, eos_id=None, beams=beams)
    assert [len(answer) for answer in said] == [6] * 4
    assert max(max(answer) for answer in said) < model.start_id
    with torch.no_grad():
        model.text_head.new.bias.fill_(300.0)
    said = model.generate(**batch(*ASKED, left=True), max_new_tokens=6, eos_id=None, beams=beams)
    assert said == [[]] * 4


def test_beams_of_a_batch_are_those_of_its_rows():
    model = toy_harmony(slide=LEARNED)
    more = {"max_new_tokens": 5, "eos_id": 4, "beams": 3, "repetition_penalty": 1.3}
    together = model.generate(**batch(*ASKED, left=True), **more)
    assert together == [model.generate(**batch(one, left=True), **more)[0] for one in ASKED]


def test_positions_and_views():
    model = toy_harmony()
    assert model.views == ("image",)  # pixels are their own latents: nothing to encode
    assert model.positions("image") == 1 + SLOTS
    assert model.canvas == (HEIGHT, COLUMNS)
    assert model.tower_of("image") is model.tower
    assert model.tower_of(CANVAS_VIEW) is model.decoder.canvas
    assert model.stops(2) == {2, model.start_id}
    logits = model.logits(**{k: v for k, v in batch(*MIXED).items() if k != "labels_BT"})
    assert logits.shape[-1] == model.start_id + 1


def test_gradient_checkpointing_changes_no_gradient(even_noise):
    found = []
    for is_on in (False, True):
        model = toy_harmony(slide=HARD).train()
        model.gradient_checkpointing(is_on)
        model(**batch(*MIXED, tasks=True)).loss(9, 6).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, atol=1e-6, rtol=1e-4, msg=name)


def test_a_family_without_a_synchroniser_runs(even_noise):
    model = toy_harmony(synchroniser=False)
    output = model(**batch(*MIXED))
    alone = torch.cat([model(**batch(one)).nll_B for one in MIXED])
    torch.testing.assert_close(output.nll_B, alone, atol=1e-4, rtol=1e-4)
    assert model.memory is None
