"""The run directory: which configurations are the same run, who may use it, and what is left behind."""

import copy
import json
import subprocess
import sys
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
            ("data.workers", 2),
            ("run.checkpoints", {"every_n_steps": 5}),
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
            ("run.checkpoints", {"best_by": "val_perplexity"}),
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

    def test_all_keys_that_differ_are_named(self, run: Run) -> None:
        with run.claimed(CONFIG):
            pass
        other = changed("data.batch_size", 16) | {"seed_everything": 1}
        said = "there seed_everything is 42, here 1; there data.batch_size is 8, here 16;"
        with pytest.raises(UserError, match=said), run.claimed(other):
            pass

    def test_a_key_that_only_one_has_differs(self, run: Run) -> None:
        with run.claimed(CONFIG):
            pass
        with pytest.raises(UserError, match=r"data\.limit is None, here 2"), run.claimed(changed("data.limit", 2)):
            pass

    def test_same_run_goes_on(self, run: Run) -> None:
        with run.claimed(CONFIG):
            run.note(state="running")
        with run.claimed(changed("trainer.enable_progress_bar", False)):
            assert run.record() == {"state": "running"}

    def test_a_later_end_is_the_same_run(self, run: Run) -> None:
        with run.claimed(CONFIG):
            run.note(state="finished")
        longer = changed("trainer.max_epochs", 5)
        with run.claimed(longer):
            assert not run.finished
        assert yaml.safe_load(run.config.read_text()) == longer

    @pytest.mark.parametrize("end", [2, None, -1])
    def test_an_earlier_end_or_none_is_another(self, run: Run, end: int | None) -> None:
        with run.claimed(CONFIG):
            pass
        with pytest.raises(UserError, match="max_epochs is 3, here"), run.claimed(changed("trainer.max_epochs", end)):
            pass

    def test_a_second_process_is_refused_until_the_first_is_dead(self, run: Run) -> None:
        code = (
            "import sys, time; from pathlib import Path; from ftlab.runs import Run; import yaml\n"
            "with Run(Path(sys.argv[1])).claimed(yaml.safe_load(sys.argv[2])): print('in', flush=True); time.sleep(60)"
        )
        command = [sys.executable, "-c", code, str(run.directory), yaml.safe_dump(CONFIG)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as owner:
            assert owner.stdout is not None
            owner.stdout.readline()
            said = f"is being worked in by process {owner.pid} on "
            with pytest.raises(UserError, match=said), run.claimed(CONFIG):
                pass
            owner.kill()
        with run.claimed(CONFIG):
            pass

    def test_what_a_killed_process_was_about_to_write_is_removed(self, run: Run) -> None:
        with run.claimed(CONFIG):
            pass
        for name in (".metrics.csv.123", ".model/config.json", "checkpoints/.last.456", ".mine"):
            (run.directory / name).parent.mkdir(exist_ok=True)
            (run.directory / name).touch()
        with run.claimed(CONFIG):
            left = {path.name for path in run.directory.rglob(".*")}
        assert left == {".mine", ".lock", ".owner"}

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

    def test_logs_of_its_jobs_are_no_other_run_and_stay(self, run: Run) -> None:
        log = run.directory / "slurm/12.out"
        write_atomically(log, "why")
        run.admitted(CONFIG)
        with pytest.raises(RuntimeError):
            fail(run, RuntimeError())
        assert sorted(run.directory.rglob("*")) == [log.parent, log]
        with run.claimed(CONFIG):
            assert run.config.is_file()

    def test_a_later_end_is_not_finished(self, run: Run) -> None:
        assert not run.finished_as(CONFIG)
        with run.claimed(CONFIG):
            run.end("finished")
        assert run.finished_as(CONFIG)
        longer = changed("trainer.max_epochs", 5)
        assert not run.finished_as(longer)
        with run.claimed(longer):
            assert not run.finished_as(longer)

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
        files = run.checkpoints
        assert files.to_judge() is None
        files.write("last", 3, lambda file: file.write(b"last"))
        assert files.to_judge() == run.last
        files.write("best", 2, lambda file: file.write(b"best"))
        assert files.to_judge() == run.best

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
