"""MoVA's text encoder: a vector is a pure function of its questions, whatever they stand beside and came before."""

from __future__ import annotations

import pytest
import torch
from mova_toy import BERT

from mmmoe.models.towers import bert
from mmmoe.models.towers.bert import BertText
from mmmoe.models.towers.spec import BertTextSpec


def text(**changes):
    torch.manual_seed(0)
    return BertText(BertTextSpec(config=BERT, max_tokens=12, **changes))


def rows(count, seed=0, length=12):
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 40, (count, length), generator=rng)
    lengths = torch.randint(2, length + 1, (count, 1), generator=rng)
    return ids.masked_fill(torch.arange(length) >= lengths, 0)


def alone(encoder, row):
    """The encoder's own [CLS] of the row without its padding."""
    return encoder.encoder(input_ids=row[row != 0][None]).last_hidden_state[0, 0]


def test_vectors_are_those_of_cls_without_padding():
    encoder, ids = text(), rows(7)
    vectors = encoder(ids)
    assert vectors.shape == (7, encoder.channels)
    assert not vectors.requires_grad
    for row, vector in zip(ids, vectors, strict=True):
        torch.testing.assert_close(vector, alone(encoder, row), atol=1e-6, rtol=1e-5)


def test_vectors_depend_on_nothing_but_their_row_to_the_last_bit():
    """Else a resumed run, which has seen fewer questions, would not be the run that nobody disturbed."""
    ids = rows(24)
    want = torch.cat([text()(row[None]) for row in ids])
    assert torch.equal(text()(ids), want)
    encoder = text()
    encoder(ids[5:9])
    encoder(torch.cat([ids[20:], rows(3, seed=1)]))
    assert torch.equal(encoder(ids.flip(0)), want.flip(0))
    shorter = ids[:, : int((ids != 0).sum(1).max())]
    assert torch.equal(text()(shorter), want)


def calls_of(encoder):
    calls = []
    encoder.encoder.register_forward_pre_hook(
        lambda _, __, given: calls.append(len(given["input_ids"])), with_kwargs=True
    )
    return calls


def test_questions_are_encoded_once(monkeypatch):
    encoder, ids = text(), rows(4)
    calls = calls_of(encoder)
    encoder(torch.cat([ids, ids]))
    encoder(ids[2:])
    assert sum(calls) == 4
    monkeypatch.setattr(bert, "KEPT", 5)
    before = encoder(ids)
    encoder(rows(3, seed=1))
    assert sum(calls) == 7
    assert torch.equal(encoder(ids), before)


def test_more_questions_than_are_kept_in_one_batch(monkeypatch):
    monkeypatch.setattr(bert, "KEPT", 2)
    encoder, ids = text(), rows(6)
    assert torch.equal(encoder(ids), torch.cat([text()(row[None]) for row in ids]))


def test_vectors_kept_in_an_exam_serve_training():
    encoder, ids = text(), rows(2)
    with torch.inference_mode():
        encoder(ids)
    weight = torch.randn(16, requires_grad=True)
    (encoder(ids) @ weight).sum().backward()
    assert weight.grad.any()


def test_a_trained_encoder_has_gradients_and_keeps_nothing():
    encoder, ids = text(), rows(3)
    stale = encoder(ids)
    encoder.requires_grad_(True)
    before = encoder(ids)
    before.sum().backward()
    unused = {name for name, p in encoder.named_parameters() if p.grad is None}
    assert unused == set()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    after = encoder(ids)
    assert not torch.isclose(after, before).all()
    encoder.requires_grad_(False)
    torch.testing.assert_close(encoder(ids), after.detach(), atol=1e-6, rtol=1e-5)
    assert not torch.equal(encoder(ids), stale)


def test_a_longer_row_than_the_encoder_has_positions_is_refused():
    with pytest.raises(ValueError, match=r"text\.max_tokens is 17, but this BERT has 16 positions"):
        BertText(BertTextSpec(config=BERT, max_tokens=17))
