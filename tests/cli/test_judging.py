"""`ftlab test`, `validate` and `predict`: whose weights are judged, on what, and where the scores go."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCORES = ["loss", "perplexity", "rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf", "exact_match"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("method", ["full", "lora", "qlora", "zeroshot"])
def test_scores_and_predictions(
    method: str, finished: Callable[[str], Path], data_path: str, ftlab: Callable[..., Any]
) -> None:
    run = finished(method)
    answer = ftlab("test", "-c", run / "config.yaml")
    assert answer.code == 0
    assert answer.err == ""
    scores = json.loads((run / "scores.json").read_text())
    assert {f"test_{name}" for name in SCORES} <= set(scores)
    assert all(isinstance(score, float) for score in scores.values())
    rows = lines(run / "predictions/test.jsonl")
    asked = lines(Path(data_path) / "test.jsonl")
    assert [(row["prompt"], row["references"]) for row in rows] == [(r["prompt"], [r["completion"]]) for r in asked]
    assert all(list(row) == ["prompt", "references", "prediction", "scores"] for row in rows)
    assert all(list(row["scores"]) == SCORES[2:] for row in rows)


def test_validation_scores_stand_beside_those_of_the_test(
    finished: Callable[[str], Path], ftlab: Callable[..., Any]
) -> None:
    run = finished("lora")
    best = json.loads((run / "scores.json").read_text())["val_loss"]
    assert ftlab("test", "-c", run / "config.yaml").code == 0
    assert ftlab("validate", "-c", run / "config.yaml").code == 0
    scores = json.loads((run / "scores.json").read_text())
    assert {f"{prefix}_{name}" for prefix in ("val", "test") for name in SCORES} <= set(scores)
    assert scores["val_loss"] == pytest.approx(best, rel=1e-6)


def test_the_best_weights_are_judged_not_the_last(finished: Callable[[str], Path], ftlab: Callable[..., Any]) -> None:
    run = finished("lora")

    def loss() -> float:
        assert ftlab("test", "-c", run / "config.yaml").code == 0
        return json.loads((run / "scores.json").read_text())["test_loss"]

    best = loss()
    (run / "checkpoints/last.ckpt").unlink()
    assert loss() == best


@pytest.mark.parametrize(("key", "value"), [
    ("data.test_limit", "1"), ("trainer.limit_test_batches", "1"), ("trainer.precision", "bf16-mixed"),
])  # fmt: skip
def test_scores_of_another_configuration_stand_apart(
    key: str, value: str, finished: Callable[[str], Path], ftlab: Callable[..., Any]
) -> None:
    run = finished("lora")
    assert ftlab("test", "-c", run / "config.yaml").code == 0
    own = {path: path.read_text() for path in (run / "scores.json", run / "predictions/test.jsonl")}
    answer = ftlab("test", "-c", run / "config.yaml", f"--{key}", value)
    assert answer.code == 0
    assert f"{key} {value}" in answer.err
    assert {path: path.read_text() for path in own} == own
    (apart,) = run.glob("scores-*.json")
    assert "test_loss" in json.loads(apart.read_text())
    predictions = run / "predictions" / f"test-{apart.stem.removeprefix('scores-')}.jsonl"
    assert key != "data.test_limit" or len(lines(predictions)) == 1


def test_how_many_are_judged_at_once_is_no_other_configuration(
    finished: Callable[[str], Path], ftlab: Callable[..., Any]
) -> None:
    run = finished("lora")
    answer = ftlab("test", "-c", run / "config.yaml", "--data.eval_batch_size", "1")
    assert (answer.code, list(run.glob("scores-*.json"))) == (0, [])
    drawn = ("--data.eval_batch_size", "1", "--model.decoding.temperature", "1")  # by a seed for each batch
    assert "data.eval_batch_size 1" in ftlab("test", "-c", run / "config.yaml", *drawn).err


@pytest.mark.parametrize("file", ["checkpoints/best.ckpt", "scores.json", "provenance.json"])
def test_a_torn_file_is_refused(file: str, finished: Callable[[str], Path], refused: Callable[..., str]) -> None:
    torn = finished("lora") / file
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    assert refused("test", "-c", finished("lora") / "config.yaml").startswith(f"{torn} is damaged")


def test_a_run_that_was_moved_is_judged_where_it_lies(
    finished: Callable[[str], Path], workplace: Path, ftlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = workplace / "archive/2026/kept"
    moved.parent.mkdir(parents=True)
    finished("lora").rename(moved)
    elsewhere = workplace / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert ftlab("test", "-c", "../archive/2026/kept/config.yaml").code == 0
    assert "test_loss" in json.loads((moved / "scores.json").read_text())
    assert list(elsewhere.iterdir()) == []
    monkeypatch.chdir(moved)
    (moved / "scores.json").unlink()
    assert ftlab("test", "-c", "config.yaml").code == 0
    assert "test_loss" in json.loads((moved / "scores.json").read_text())
    assert ftlab("fit", "-c", "config.yaml").err.endswith("has finished; another --run.name repeats it\n")


def test_without_test_records_the_validation_records_are_scored(
    workplace: Path, write_lines: Callable[..., Path], ftlab: Callable[..., Any]
) -> None:
    for split in ("train", "dev"):
        write_lines(workplace / f"two/{split}.jsonl", [{"prompt": split, "response": "answer"}] * 2)
    command = ["-c", "tiny.yaml", "--run.name", "two", "--data.path", "two"]
    assert ftlab("fit", *command).code == 0
    answer = ftlab("test", *command)
    assert answer.code == 0
    assert answer.err == "ftlab: two has no test records: scoring the validation records\n"
    assert [row["prompt"] for row in lines(Path("runs/tiny/two/predictions/test.jsonl"))] == ["dev"]


def test_records_that_share_a_prompt_are_its_references(
    workplace: Path, write_lines: Callable[..., Path], ftlab: Callable[..., Any]
) -> None:
    rows = [{"mr": "name[X]", "ref": "X is here."}, {"mr": "name[Y]", "ref": "Y."}, {"mr": "name[X]", "ref": "An X."}]
    for split in ("train", "dev", "test"):
        write_lines(workplace / f"e2e/{split}.jsonl", [row | {"mr": split + row["mr"]} for row in rows])
    command = ["-c", "tiny.yaml", "--run.name", "several", "--data.path", "e2e", "--model.method", "ZeroShot"]
    templates = ["--data.prompt", "{mr}\n", "--data.response", "{ref}"]
    assert ftlab("fit", *command, *templates).code == 0
    assert ftlab("test", *command, *templates).code == 0
    predicted = lines(Path("runs/tiny/several/predictions/test.jsonl"))
    assert [row["references"] for row in predicted] == [["X is here.", "An X."], ["Y."]]


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_what_has_not_been_trained_cannot_be_judged(verb: str, workplace: Path, refused: Callable[..., str]) -> None:
    assert "there is no run at runs/tiny/never" in refused(verb, "-c", "tiny.yaml", "--run.name", "never")
    assert "there is no configuration file" in refused(verb, "-c", "runs/tiny/never/config.yaml")


def test_predict_answers_the_test_records(
    finished: Callable[[str], Path], data_path: str, ftlab: Callable[..., Any]
) -> None:
    run = finished("lora")
    answer = ftlab("predict", "-c", run / "config.yaml", "--data.test_limit", 1)
    assert (answer.code, answer.out, answer.err) == (0, f"{run}/predictions/predict.jsonl\n", "")
    rows = lines(run / "predictions/predict.jsonl")
    asked = lines(Path(data_path) / "test.jsonl")
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in asked]
    assert all(list(row) == ["prompt", "references", "prediction"] for row in rows)


def test_predict_answers_a_whole_file_without_references(
    finished: Callable[[str], Path], workplace: Path, write_lines: Callable[..., Path], ftlab: Callable[..., Any]
) -> None:
    run = finished("qlora")
    prompts = [f"question {n}" for n in range(40)]
    write_lines(workplace / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    assert ftlab("predict", "-c", run / "config.yaml", "--data.path", "prompts.jsonl").code == 0
    rows = lines(run / "predictions/predict.jsonl")
    assert [row["prompt"] for row in rows] == prompts
    assert all(row["references"] == [] for row in rows)


@pytest.mark.parametrize(
    ("row", "templates", "prompt"),
    [
        ({"instruction": "Add.", "input": "1 2"}, [], "Add.\n\n1 2"),
        ({"mr": "name[X]"}, ["--data.prompt", "{mr}!", "--data.response", "{ref}"], "name[X]!"),
    ],
)
def test_predict_words_prompts_as_training_does(
    row: dict[str, str],
    templates: list[str],
    prompt: str,
    finished: Callable[[str], Path],
    workplace: Path,
    write_lines: Callable[..., Path],
    ftlab: Callable[..., Any],
) -> None:
    run = finished("zeroshot")
    write_lines(workplace / "prompts.jsonl", [row])
    assert ftlab("predict", "-c", run / "config.yaml", "--data.path", "prompts.jsonl", *templates).code == 0
    assert [row["prompt"] for row in lines(run / "predictions/predict.jsonl")] == [prompt]


def test_predict_of_a_trained_file_keeps_its_references(
    finished: Callable[[str], Path], data_path: str, ftlab: Callable[..., Any]
) -> None:
    run = finished("lora")
    train = Path(data_path) / "train.jsonl"
    assert ftlab("predict", "-c", run / "config.yaml", "--data.path", train).code == 0
    rows = lines(run / "predictions/predict.jsonl")
    assert [row["references"] for row in rows] == [[row["completion"]] for row in lines(train)]


@pytest.mark.parametrize("method", ["lora", "zeroshot"])
def test_another_network_than_the_run_s_is_not_judged_as_the_run(
    method: str, finished: Callable[[str], Path], refused: Callable[..., str]
) -> None:
    said = refused("test", "-c", finished(method) / "config.yaml", "--model.network.random_weights", "true")
    assert "model.network.random_weights" in said


def test_prompts_that_were_cut_to_train_leave_room_for_answers(
    workplace: Path, write_lines: Callable[[Path, list[Any]], Path], ftlab: Callable[..., Any]
) -> None:
    for split in ("train", "dev", "test"):
        rows = [{"prompt": f"{split}{number} " * 60, "completion": "yes"} for number in range(12)]
        write_lines(Path("long") / f"{split}.jsonl", rows)
    options = ["-c", "tiny.yaml", "--data.path", "long", "--data.max_length", "32", "--data.overflow", "truncate"]
    for verb in ("fit", "test", "predict"):
        answer = ftlab(verb, *options, "--run.name", "cut")
        assert answer.code == 0, answer.err


def test_virtual_tokens_of_prompt_tuning_are_no_targets(workplace: Path, ftlab: Callable[..., Any]) -> None:
    options = ["--model.method", "Peft", "--model.method.config", "peft.PromptTuningConfig"]
    options += ["--model.method.config.num_virtual_tokens", "3", "--run.name", "prompt"]
    for verb in ("fit", "test"):
        answer = ftlab(verb, "-c", "tiny.yaml", *options)
        assert answer.code == 0, answer.err
