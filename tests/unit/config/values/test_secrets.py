"""Secrets in a job file are refused with the cure, and never shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.values.sensitive import secret_name, secret_value
from tests.unit.config.conftest import Folder


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "apikey"),
        *("DB_PASSWORD", "PGPASSWORD", "GOOGLE_CREDENTIALS", "MY_SECRET", "GITHUBTOKEN"),
    ],
)
def test_names_of_secrets(folder: Folder, name: str) -> None:
    said = folder.said(f"env.{name}=abc")
    assert f"env.{name}: looks like a secret by its name" in said
    assert f"hint: secrets: [{name}] takes it from your environment at submit" in said


@pytest.mark.parametrize(
    "name",
    [
        *("TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS", "NCCL_DEBUG", "PYTHONPATH", "MAX_TOKENS"),
        *("KEYBOARD", "MONKEYS", "AWS_SHARED_CREDENTIALS_FILE", "SSH_KEY_PATH", "AUTHOR"),
    ],
)
def test_names_of_plain_values(name: str) -> None:
    assert not secret_name(name)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("hf_" + "aB3dE6gH9jK2mN5pQ8" * 2, "a Hugging Face token"),
        ("AKIA" + "ABCDEFGH12345678", "an AWS access key"),
        ("ghp_" + "abcdefghijklmnopqrstuvwxyz0123456789", "a GitHub token"),
        ("https://me:secretword@host/x", "a URL with a password"),
        ("-----BEGIN RSA PRIVATE " + "KEY-----", "a private key"),
        ("https://b.s3.amazonaws.com/k?X-Amz-Signature=0a1b", "a signed URL"),
        ("q7Xb2LmZ9vKc4RtY8nPw3JhG6fDs1AeU5oTi", "a random key"),
    ],
)
def test_values_that_look_like_secrets_are_not_shown(folder: Folder, value: str, what: str) -> None:
    said = folder.said(f"env.PLAIN='{value}'")
    assert f"env.PLAIN: looks like a secret: {what}" in said
    assert "secrets: [PLAIN]" in said
    assert value not in said


@pytest.mark.parametrize(
    "value",
    [
        *("1", "expandable_segments:True", "/home/User1/some/Long/path/to/a/Folder/number42"),
        *("0123456789abcdef0123456789abcdef01234567", "Qwen/Qwen2.5-VL-7B-Instruct", "INFO"),
        "https://proxy.example:3128/path",
    ],
)
def test_plain_values_pass(value: str) -> None:
    assert secret_value(value) is None


def test_a_token_anywhere_in_the_file_is_refused_and_not_shown(folder: Folder) -> None:
    token = "hf_" + "x" * 30
    said = folder.said(f"slurm={{account: {token}}}")
    assert "slurm.account: looks like a secret: a Hugging Face token" in said
    assert token not in said


def test_credentials_in_the_address_are_refused_and_not_shown(folder: Folder) -> None:
    said = folder.said("checkpoint.uri=s3://AKIAX:pa55word@bucket/runs")
    assert "checkpoint.uri: the address contains a name or password" in said
    assert "pa55word" not in said
    assert "query" in folder.said("checkpoint.uri=s3://bucket/runs?token=abc")


def test_a_secret_cannot_also_be_plain(folder: Folder) -> None:
    said = folder.said("secrets=[WORD]", "env.WORD=x")
    assert "secrets[0]: WORD is also given under env" in said


@given(st.text(max_size=300))
def test_any_text_is_judged(text: str) -> None:
    secret_value(text)
    secret_name(text)
