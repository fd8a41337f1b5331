"""lm-evaluation-harness: what is taken of its results; that they are right needs the package (tests/cli)."""

import importlib.util
from typing import Any

import pytest

from ftlab.errors import UserError
from ftlab.evaluation import harness


def test_results_become_plain_names_and_numbers() -> None:
    results = {
        "arc_easy": {"alias": "arc_easy", "acc,none": 0.5, "acc_stderr,none": 0.01, "acc_norm,none": 1},
        "gsm8k": {"exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": 0.1},
        "mmlu": {"alias": "mmlu", "acc,none": 0.3, "acc_stderr,none": "N/A"},
    }
    assert harness._scores(results) == {
        "arc_easy_acc": 0.5,
        "arc_easy_acc_stderr": 0.01,
        "arc_easy_acc_norm": 1.0,
        "gsm8k_exact_match_strict-match": 0.25,
        "gsm8k_exact_match_strict-match_stderr": 0.1,
        "mmlu_acc": 0.3,
    }


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def without(name: str, *more: Any) -> Any:
        return None if name == "lm_eval" else find_spec(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(UserError, match=r"^--harness: .* is not installed: pip install 'ftlab\[harness\]'"):
        harness.refuse_without_harness()
