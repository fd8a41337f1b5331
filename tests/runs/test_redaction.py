"""Secrets are known by the names of their variables, and by where in a URL they stand; texts are freed of them."""

import pytest

from ftlab.runs.redaction import redacted, secret_in, secrets


@pytest.mark.parametrize(
    "name",
    ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD", "DBPASSWORD", "githubToken", "MYSQL_PWD"],
)
def test_variables_that_hold_a_secret(name: str) -> None:
    assert secrets({name: "swordfish"}) == {"swordfish": name}


@pytest.mark.parametrize("name", ["PWD", "OLDPWD", "TOKENIZERS_PARALLELISM", "PATH", "KEYBOARD", "PASSAGE"])
def test_variables_that_hold_none(name: str) -> None:
    assert secrets({name: "swordfish"}) == {}


def test_a_value_too_short_to_be_told_from_words_is_none() -> None:
    assert secrets({"MY_TOKEN": "true"}) == {}


def test_every_line_of_a_key_is_one_and_the_longest_comes_first() -> None:
    assert list(secrets({"SSH_KEY": "-----BEGIN\nabcdefghijkl\n-----END"})) == [
        "abcdefghijkl",
        "-----BEGIN",
        "-----END",
    ]


def test_the_password_in_a_url_is_one_whatever_the_variable() -> None:
    assert secrets({"DATABASE": "postgres://me:swordfish@host/db"}) == {"swordfish": "DATABASE"}


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("--data.path swordfish/x", "--data.path ***/x"),
        ("https://me:hunter2@host/x.jsonl", "https://***@host/x.jsonl"),
        ("https://host/x.jsonl?a=1&X-Amz-Signature=0af&b=2", "https://host/x.jsonl?a=1&X-Amz-Signature=***&b=2"),
        ("https://host/x.jsonl?page=2", "https://host/x.jsonl?page=2"),
        ("ssh://git@host/x", "ssh://git@host/x"),
        ("hf://datasets/owner/name@main/x:y", "hf://datasets/owner/name@main/x:y"),
    ],
)
def test_texts_without_secrets(text: str, without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PASSWORD", "swordfish")
    assert redacted(text) == without
    assert (secret_in(text) is None) == (text == without)


def test_what_is_said_of_a_secret_does_not_give_it_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PASSWORD", "swordfish")
    assert secret_in("a swordfish") == "the value of $MY_PASSWORD"
    assert secret_in("https://me:hunter2@host") == "a password in a URL"
    assert secret_in("https://host/?token=hunter2") == "a key in a URL"
