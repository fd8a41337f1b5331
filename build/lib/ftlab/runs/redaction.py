"""Secrets: which variables of the environment hold one, what in a text is one, and texts without them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

SHORTEST = 6
"""Characters below which a value is no secret: it would be found in every other word."""
HIDDEN = "***"

_NAME = re.compile(
    r"(?:^|[^A-Z0-9])(?:[A-Z0-9]*(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?|PASS|AUTH|(?<=_)PWD)"
    r"(?:[^A-Z0-9]|$)"
)
_IN_URL = re.compile(r"(?<=://)[^\s/@:'\"]*:([^\s/@'\"]+)(?=@)")
_IN_QUERY = re.compile(r"(?<=[?&])([\w.-]*(?:token|key|secret|password|signature|sig|credential)=)[^&\s'\"]+", re.I)


def secrets(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The secrets of the environment, each with the variable that holds it, the longest first.

    A variable holds one where a word of its name says so (API_KEY, HF_TOKEN, DB_PASSWORD, …), or where it is a URL with
    a password in it. Of several lines each is a secret.
    """
    found: dict[str, str] = {}
    for name, value in (os.environ if environment is None else environment).items():
        parts = value.splitlines() if _NAME.search(name.upper()) else []
        parts += _IN_URL.findall(value)
        found |= {part.strip(): name for part in parts if len(part.strip()) >= SHORTEST}
    return {value: found[value] for value in sorted(found, key=len, reverse=True)}


def redacted(text: str) -> str:
    """The text with `***` in place of every secret of the environment, and of passwords and keys in URLs."""
    for value in secrets():
        text = text.replace(value, HIDDEN)
    return _IN_QUERY.sub(rf"\1{HIDDEN}", _IN_URL.sub(HIDDEN, text))


def secret_in(text: str) -> str | None:
    """What secret the text holds, in words that do not give it away; None where it holds none that is known."""
    for value, name in secrets().items():
        if value in text:
            return f"the value of ${name}"
    if _IN_URL.search(text):
        return "a password in a URL"
    return "a key in a URL" if "://" in text and _IN_QUERY.search(text) else None
