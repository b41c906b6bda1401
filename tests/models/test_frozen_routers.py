"""Terms of routers that do not train are told and move nothing."""

from __future__ import annotations

import torch
from models_toy import mole_spec, randomise, toy_batch, toy_model

from mmmoe.models.lora.spec import BalanceSpec


def two_adapters():
    """Returns the toy with two routed adapters: on layer 0, then on layer 1."""
    model = toy_model()
    specs = [
        mole_spec(sites=[f"language.*.{at}.mlp"]).model_copy(update={"balance": BalanceSpec(weight=0.5, z_weight=0.25)})
        for at in range(2)
    ]
    model.add_adapters(specs)
    randomise(model)
    return model


def routers(model, layer):
    return list(model.language.model.layers[layer].mlp.router.parameters())


def test_terms_of_a_frozen_adapter_are_logged_and_left_out_of_the_loss():
    model = two_adapters()
    everything = model(**toy_batch())
    assert set(everything.auxiliary) == {"balance", "z", "balance_2", "z_2"}
    for parameter in routers(model, 0):
        parameter.requires_grad_(False)
    output = model(**toy_batch())
    assert set(output.auxiliary) == set(output.weights) == {"balance_2", "z_2"}
    assert set(output.auxiliary_layers) == {"balance", "z", "balance_2", "z_2"}
    for name, term in everything.auxiliary_layers.items():
        assert torch.equal(output.auxiliary_layers[name], term)


def test_a_frozen_router_pulls_at_nothing_before_it():
    model = two_adapters()
    for parameter in routers(model, 1):
        parameter.requires_grad_(False)
    output = model(**toy_batch())
    nll = output.nll_B.sum() / 9
    terms = sum(output.weights[name] * term.sum() / 3 for name, term in output.auxiliary.items())
    torch.testing.assert_close(output.loss(9, 3), nll + terms)
    assert "balance_2" not in output.auxiliary
    assert not output.auxiliary_layers["balance_2"].requires_grad


def test_one_parameter_that_trains_is_enough():
    model = two_adapters()
    weight, _ = routers(model, 0)
    weight.requires_grad_(False)
    assert "balance" in model(**toy_batch()).auxiliary
