"""What `fit` writes into provenance.json, beside what tests/runs says of its parts."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ftlab
from ftlab.cli.provenance import network_fingerprint
from ftlab.data.leaks import Leaks
from ftlab.networks import Network


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "provenance.json").read_text())


def test_a_run_tells_where_it_comes_from(finished: Callable[[str], Path], network: Network) -> None:
    said = record(finished("lora"))
    files = {path.name: hashlib.blake2b(path.read_bytes()).digest() for path in Path(network.path).iterdir()}
    of_digests = {name: hashlib.blake2b(part, digest_size=8).hexdigest() for name, part in sorted(files.items())}
    assert said["fingerprints"]["network"] == of_digests
    assert {"train", "validation", "test", "rows"} == set(said["fingerprints"]["data"])
    assert said["seeds"] == {"seed_everything": 42, "model": 42, "dropout": 42, "data": 42}
    assert said["ftlab"]["version"] == ftlab.__version__
    assert said["packages"]["torch"] == said["versions"]["torch"]
    assert said["environment"]["OMP_NUM_THREADS"] == "1"
    assert said["code"] is None  # the working directory is no repository
    [session] = said["sessions"]
    assert (session["state"], session["from_step"]) == ("finished", 0)
    assert session["devices"] == {"kind": "cpu", "number": 1, "nodes": 1}
    assert session["ended"] == said["ended"]
    assert 0 < session["first_step"]["own"] < session["first_step"]["seconds"]
    assert session["ways"] == {"loss": "fused", "padding": "unseen"}


def test_other_data_and_another_network_have_other_fingerprints(
    finished: Callable[[str], Path], data_path: str, network: Network, ftlab: Callable[..., Any]
) -> None:
    before = record(finished("zeroshot"))["fingerprints"]
    shutil.copytree(data_path, "data")
    shutil.copytree(network.path, "network")
    (Path("data/train.jsonl")).write_text('{"prompt": "new", "completion": "row"}\n')
    config = json.loads(Path("network/generation_config.json").read_text())
    Path("network/generation_config.json").write_text(json.dumps(config | {"top_k": 7}))
    options = ["--model.method", "ZeroShot", "--data.path", "data", "--model.network.path", "network"]
    assert ftlab("fit", "-c", "tiny.yaml", "--run.name", "other", *options).code == 0
    now = record(Path("runs/tiny/other"))["fingerprints"]
    assert {name for name in now["data"] if now["data"][name] != before["data"][name]} == {"train", "rows"}
    changed = {name for name in now["network"] if now["network"][name] != before["network"][name]}
    assert changed == {"generation_config.json"}
    assert now["tokenizer"] == before["tokenizer"]


def test_a_network_of_the_hub_is_known_by_its_commit() -> None:
    @dataclass(frozen=True)
    class OnTheHub(Network):
        def config(self) -> Any:
            return SimpleNamespace(_commit_hash="c0ffee")

    assert network_fingerprint(OnTheHub("owner/name")) == {"commit": "c0ffee"}


def test_a_stream_is_not_read_for_its_fingerprint(make_data: Callable[..., Any]) -> None:
    found = [make_data(streaming=True, leaks=Leaks("ignore")).fingerprints() for _ in range(2)]
    assert set(found[0]) == {"rows", "tokenizer", "stream"}
    assert found[0] == found[1]
