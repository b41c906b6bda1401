"""Passwords and keys of services appear in no message, log, run folder or report."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mmmoe import cli
from mmmoe.conceal import conceal, is_secret
from mmmoe.config.load import ConfigError, load
from mmmoe.log import console, logger
from mmmoe.report.files import read_run
from mmmoe.stages.spec import RunSpec

SECRET = "s3cr3t-Value.0123456789"


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{SECRET}@host/path",
        f"postgres://{SECRET}@host",
        f"api_key={SECRET}",
        f'{{"api_key": "{SECRET}", "x": 1}}',
        f"'password': '{SECRET}'",
        f"WANDB_API_KEY={SECRET} --flag",
        f"override 'engine.deepspeed.comet.api_key={SECRET}': unknown",
        f"client-secret: {SECRET}",
        f"HF_TOKEN={SECRET}",
        f'auth_token: "{SECRET}"',
        f"postgresql://u:{SECRET}/{SECRET}@host",
        f"ssh://user:{SECRET}@host/path",
        f"wandb_key={SECRET}",
        f"passwords: {SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"judge --api-key {SECRET} --port 80",
        f"judge --token {SECRET}",
        f"judge --password '{SECRET} b'",
        f"override 'engine.deepspeed.password=a {SECRET} c': unknown",
        f"x: 1\npassword: a {SECRET} c\ny: 2",
    ],
)
def test_secrets_are_concealed(text):
    shown = conceal(text)
    assert SECRET not in shown
    assert "***" in shown


@pytest.mark.parametrize(
    "form",
    [
        "hf_" + "a1B2" * 8,
        "ghp_" + "a1B2" * 9,
        "sk-" + "a1B2" * 8,
        "AKIA" + "A1B2" * 4,
        "github_pat_" + "a1B2" * 9,
        "glpat-" + "a1B2" * 5,
        "sk-proj-" + "a1B2" * 8,
        "Bearer " + "a1B2" * 8,
    ],
)
def test_passes_are_known_by_their_form(form):
    assert form not in conceal(f"reading {form} failed")
    assert is_secret("anything", form)


@pytest.mark.parametrize(
    "text",
    [
        "pad_token: <pad>",
        "loss 0.5 at step 3, 1200 tokens/s",
        "keys: a.b=1, token: 5",
        "see https://example.org/a@b?x=1",
        "shards a@b.tar: copy again",
        "checkpoint.keep=3 is too few",
        "the key path=value",
        "image_token='<image>', eos_token_id=2",
        "token: models/tiny/tokenizer.json is missing",
        "token: models/llama3/gemma2b/tokenizer.json is missing",
        "eos_token: reserved_special_token_12",
        "image_token=IMAGE_PLACEHOLDER_TOKEN",
        "git+ssh://git@github.com/some/package",
        "ssh://somebody@host/path",
        "https://git@github.com/some/package",
        "http://host:8080/a@b",
        "http://[::1]:80/a@b",
        "sk-learn-and-more-and-more-words",
        "--api-key is missing, --token must be a service's",
        "the bearer of such news",
    ],
)
def test_other_texts_stay(text):
    assert conceal(text) == text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eos_token", "reserved_special_token_12"),
        ("image_token", "IMAGE_PLACEHOLDER_TOKEN"),
        ("token", "models/tiny/tokenizer.json"),
        ("package", "git+ssh://git@github.com/some/package"),
        ("name", "sk-learn-and-more-and-more-words"),
    ],
)
def test_a_configuration_may_name_tokens_of_a_language_and_packages(name, value):
    assert not is_secret(name, value)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        (f"engine.deepspeed.comet.api_key={SECRET}", "api_key"),
        (f"runs=https://me:{SECRET}@host/x", "runs"),
        (f"engine.deepspeed.x=[{{password: {SECRET}}}]", "password"),
        (f"engine.deepspeed.hub_token={SECRET}", "hub_token"),
        (f"pasword.api_key={SECRET}", "api_key"),
    ],
)
def test_a_configuration_with_a_secret_is_refused_without_showing_it(override, key):
    with pytest.raises(ConfigError) as caught:
        load(Path("configs/llava_mole_tiny.yaml"), RunSpec, [override])
    assert f"{key}: is a secret" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_messages_and_logs_show_none(caplog):
    with console.capture() as said:
        status = cli.guarded(lambda: _fail(f"cannot reach https://u:{SECRET}@host"))
        logger().warning("cannot reach %s", f"https://u:{SECRET}@host")
    assert status == cli.USER_MISTAKE
    assert "https://***@host" in said.get()
    assert SECRET not in said.get()


def _fail(text):
    raise ValueError(text)


def test_reports_of_folders_of_others_show_none(tmp_path):
    (tmp_path / "stages" / "a").mkdir(parents=True)
    (tmp_path / "stages" / "a" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    (tmp_path / "spec.yaml").write_text(f"name: x\nengine:\n  deepspeed: {{api_key: {SECRET}}}\n")
    assert SECRET not in read_run(tmp_path).spec_text
    assert "api_key: ***" in read_run(tmp_path).spec_text


def test_logging_keeps_its_own_fields():
    record = logging.LogRecord("mmmoe", logging.INFO, "", 0, "step %d of %s", (3, "a"), None)
    assert all(check.filter(record) for check in logger().filters)
    assert record.getMessage() == "step 3 of a"
