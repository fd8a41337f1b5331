"""The run directory: which configurations are the same run, who may use it, and what is left behind."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftlab.errors import UserError
from ftlab.runs import Run, identity, short_hash, write_atomically

CONFIG: dict[str, Any] = {
    "seed_everything": 42,
    "model": {"method": {"class_path": "ftlab.methods.LoRA", "init_args": {"r": 8}}, "metrics": ["bleu"]},
    "data": {"path": "data", "batch_size": 8},
    "trainer": {"max_epochs": 3, "default_root_dir": None, "logger": None, "enable_progress_bar": None},
    "wandb": {"enabled": True},
    "run": {"root": "runs", "experiment": "e", "name": None},
}


def changed(key: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    *parents, last = key.split(".")
    inner = config
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return config


class TestIdentity:
    def test_is_flat_and_leaves_out_where_results_go(self) -> None:
        assert identity(CONFIG) == {
            "seed_everything": 42,
            "model.method.class_path": "ftlab.methods.LoRA",
            "model.method.init_args.r": 8,
            "model.metrics": ["bleu"],
            "data.path": "data",
            "data.batch_size": 8,
            "trainer.max_epochs": 3,
        }

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("run.root", "elsewhere"),
            ("run.name", "other"),
            ("wandb.enabled", False),
            ("trainer.default_root_dir", "/elsewhere"),
            ("trainer.logger", True),
            ("trainer.enable_progress_bar", False),
        ],
    )
    def test_same_run_with_other_output(self, key: str, value: Any) -> None:
        assert short_hash(changed(key, value)) == short_hash(CONFIG)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("seed_everything", 43),
            ("model.method.init_args.r", 16),
            ("model.metrics", []),
            ("data.path", "other"),
            ("trainer.max_epochs", 4),
        ],
    )
    def test_another_run_with_other_settings(self, key: str, value: Any) -> None:
        assert short_hash(changed(key, value)) != short_hash(CONFIG)

    def test_order_of_keys_does_not_matter(self) -> None:
        assert short_hash(dict(reversed(CONFIG.items()))) == short_hash(CONFIG)

    def test_hash_is_the_same_after_a_round_trip_through_yaml(self) -> None:
        assert short_hash(yaml.safe_load(yaml.safe_dump(CONFIG))) == short_hash(CONFIG)
        assert len(short_hash(CONFIG)) == 8


def fail(run: Run, failure: BaseException, checkpoint: str | None = None) -> None:
    """Begins the run, writes a checkpoint where one is given, and fails."""
    with run.claimed(CONFIG):
        run.note(state="running")
        if checkpoint:
            write_atomically(run.last, checkpoint)
        raise failure


class TestClaimed:
    def test_writes_the_configuration(self, run: Run) -> None:
        with run.claimed(CONFIG):
            assert yaml.safe_load(run.config.read_text()) == CONFIG

    def test_another_run_is_refused_and_the_key_is_named(self, run: Run) -> None:
        with run.claimed(CONFIG):
            pass
        before = run.config.read_bytes()
        refusal = pytest.raises(UserError, match=r"data\.batch_size is 8, here 16.*--run\.name")
        with refusal, run.claimed(changed("data.batch_size", 16)):
            pytest.fail("must not be reached")
        assert run.config.read_bytes() == before

    def test_how_many_keys_differ_is_said(self, run: Run) -> None:
        with run.claimed(CONFIG):
            pass
        other = changed("data.batch_size", 16) | {"seed_everything": 1}
        with pytest.raises(UserError, match="and 1 more"), run.claimed(other):
            pass

    def test_a_key_that_only_one_has_differs(self, run: Run) -> None:
        with run.claimed(CONFIG):
            pass
        with pytest.raises(UserError, match=r"data\.workers is None, here 2"), run.claimed(changed("data.workers", 2)):
            pass

    def test_same_run_goes_on(self, run: Run) -> None:
        with run.claimed(CONFIG):
            run.note(state="running")
        with run.claimed(changed("trainer.enable_progress_bar", False)):
            assert run.record() == {"state": "running"}

    def test_directory_of_something_else_is_refused_and_left_alone(self, run: Run) -> None:
        run.directory.mkdir(parents=True)
        (run.directory / "thesis.tex").write_text("important")
        with pytest.raises(UserError, match="holds no run"), run.claimed(CONFIG):
            pass
        assert (run.directory / "thesis.tex").read_text() == "important"

    @pytest.mark.parametrize("failure", [UserError("x"), RuntimeError("x"), KeyboardInterrupt()])
    def test_new_run_that_fails_leaves_nothing(self, run: Run, failure: BaseException) -> None:
        with pytest.raises(type(failure)):
            fail(run, failure)
        assert not run.directory.exists()

    def test_failing_run_with_a_checkpoint_keeps_it(self, run: Run) -> None:
        with pytest.raises(RuntimeError):
            fail(run, RuntimeError(), checkpoint="weights")
        assert run.last.read_text() == "weights"
        assert yaml.safe_load(run.config.read_text()) == CONFIG

    def test_run_that_fails_when_it_goes_on_keeps_what_it_had(self, run: Run) -> None:
        with run.claimed(CONFIG):
            run.note(state="finished")
        with pytest.raises(RuntimeError), run.claimed(CONFIG):
            raise RuntimeError
        assert run.finished


class TestFiles:
    def test_checkpoint_prefers_best(self, run: Run) -> None:
        assert run.checkpoint is None
        write_atomically(run.last, "last")
        assert run.checkpoint == run.last
        write_atomically(run.best, "best")
        assert run.checkpoint == run.best

    def test_notes_add_up(self, run: Run) -> None:
        run.note(state="running", seed=1)
        assert not run.finished
        run.note(state="finished")
        assert run.finished
        assert json.loads(run.provenance.read_text()) == {"state": "finished", "seed": 1}

    def test_scores_add_up(self, run: Run) -> None:
        run.add_scores({"val_loss": 2.0})
        run.add_scores({"test_loss": 3.0, "val_loss": 1.0})
        assert json.loads(run.scores.read_text()) == {"val_loss": 1.0, "test_loss": 3.0}

    def test_predictions_are_a_line_a_record(self, run: Run) -> None:
        rows = [{"prompt": "a\nb", "prediction": "é"}, {"prompt": "c", "prediction": ""}]
        path = run.write_predictions("test", rows)
        assert path == run.directory / "predictions" / "test.jsonl"
        assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == rows
        assert "é" in path.read_text(encoding="utf-8")


class TestWriteAtomically:
    def test_replaces(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "file.txt"
        write_atomically(path, "one")
        write_atomically(path, "two")
        assert path.read_text() == "two"
        assert [file.name for file in path.parent.iterdir()] == ["file.txt"]

    def test_failing_write_leaves_what_was_there_and_nothing_else(self, tmp_path: Path) -> None:
        path = tmp_path / "file.txt"
        write_atomically(path, "one")
        with pytest.raises(UnicodeEncodeError):
            write_atomically(path, "x" * 100_000 + "\ud800")
        assert path.read_text() == "one"
        assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]
