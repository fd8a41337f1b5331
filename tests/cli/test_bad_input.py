"""What cannot be done is refused: not 0, one sentence that says what, where and what to do, and nothing left behind."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ftlab.networks import Network

ROW = '{"prompt": "a", "response": "b"}\n'


@pytest.fixture
def place(workplace: Path, network: Network) -> Path:
    """The working directory with sets and networks that are wrong, each in its own way."""
    sets = {
        "empty": b"",
        "broken": f'{ROW}{{"prompt": "a",\n'.encode(),
        "latin": b'{"prompt": "\xe4", "response": "b"}\n',
        "numbers": b"1\n",
        "columns": b'{"question": "a", "solution": "b"}\n',
        "masked": f'{ROW}{{"prompt": "a", "response": " "}}\n'.encode(),
        "long": f'{{"prompt": "{"word " * 200}", "response": "b"}}\n'.encode(),
        "only_dev": b"",
    }
    for name, content in sets.items():
        (workplace / name).mkdir()
        (workplace / name / "train.jsonl").write_bytes(content)
        (workplace / name / "dev.jsonl").write_text(ROW.replace("a", "z"))
    (workplace / "only_dev/train.jsonl").unlink()
    (workplace / "no_split").mkdir()
    for name, files in {"no_weights": "*.safetensors", "no_tokenizer": "tok*", "no_config": "config.json"}.items():
        shutil.copytree(network.path, workplace / name)
        for file in (workplace / name).glob(files):
            file.unlink()
    (workplace / "mine.py").write_text("class NoMethod: pass\n")
    return workplace


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--data.path nowhere", ["data.path", "nowhere"]),
        ("--data.path nowhere.jsonl", ["nowhere.jsonl is neither a file nor a directory"]),
        ("--data.path mine.py", ["mine.py is of no kind that can be read", ".jsonl"]),
        ("--data.path no_split", ["no_split has no file named train, dev"]),
        ("--data.path empty", ["empty/train.jsonl holds no records"]),
        ("--data.path broken", ["train.jsonl:2 is broken JSON", "broken/train.jsonl"]),
        ("--data.path latin", ["train.jsonl:1 is not UTF-8"]),
        ("--data.path numbers", ["train.jsonl:1 is a number"]),
        ("--data.path columns", ["question, solution", "data.prompt"]),
        (
            "--data.path columns --data.prompt {ask} --data.response {solution}",
            ["no column ask", "question, solution"],
        ),
        ("--data.prompt {prompt}", ["data.response is missing"]),
        (
            "--data.path masked --data.clean.empty false",
            ["train.jsonl:2: the response is empty, so nothing would be learned"],
        ),
        ("--data.path long", ["train.jsonl:1 takes", "data.max_length", "data.overflow"]),
        ("--data.path long --data.overflow drop", ["none is left to train on", "too_long 1", "data.overflow"]),
        ("--data.path only_dev", ["no train records"]),
        ("--data.max_length 4096", ["data.max_length is 4096", "context of 128"]),
        ("--data.batch_size 0", ["data.batch_size is 0"]),
        ("--data.splits.validation 1.5 --data.path masked/dev.jsonl", ["data.splits.validation is 1.5"]),
    ],
)
def test_data(options: str, said: list[str], place: Path, refused: Callable[..., str]) -> None:
    sentence = refused("fit", "-c", "tiny.yaml", *options.split())
    assert all(words in sentence for words in said), sentence


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--model.network.path nowhere", ["network.path: nowhere is neither a directory nor"]),
        ("--model.network.path no_weights", ["no_weights has no weights"]),
        ("--model.network.path no_tokenizer", ["no_tokenizer has no tokenizer"]),
        ("--model.network.path no_config", ["no_config has no config.json"]),
        ("--model.network.dtype int4", ["model.network.dtype is int4", "float32, bfloat16, float16"]),
        ("--model.method NoSuch", ["there is no 'NoSuch'", "Peft, AdaLoRA, LoRA, QLoRA, XLoRA, Full, LISA, ZeroShot"]),
        ("--model.method mine.NoMethod", ["mine.NoMethod is no Method", "LoRA"]),
        ("--model.method mine.Gone", ["mine.Gone cannot be imported", "no attribute 'Gone'"]),
        ("--model.method gone.Gone", ["gone.Gone cannot be imported", "No module named 'gone'"]),
        ("--model.method.targets [q_proj,qv_proj]", ["no 'qv_proj'", "q_proj, k_proj, v_proj, o_proj"]),
        ("--model.method.r 0", ["method.r is 0"]),
        (
            "--model.method.quantization.kind nf4",
            ["no key model.method.quantization", "under model.method there are r, alpha, dropout"],
        ),
        ("--model.method.r many", ["model.method.r is many: it must be a whole number"]),
        ("--model.method.dropout 2", ["dropout", "2.0"]),
        ("--model.method.init best", ["model.method.init is best", "default, gaussian, orthogonal, pissa"]),
        ("--model.method Full --model.method.trainable [nothing.*]", ["no parameter matches 'nothing.*'"]),
        ("--model.metrics [rouge9]", ["rouge9"]),
        ("--model.metrics [mine.gone]", ["mine.gone", "no attribute 'gone'"]),
        ("--model.decoding.max_new_tokens 0", ["decoding.max_new_tokens is 0"]),
        ("--model.optimizer.lr fast", ["model.optimizer.lr is fast: it must be a number"]),
        ("--model.optimizer.lr -1", ["model.optimizer: Invalid learning rate: -1.0"]),
        ("--model.schedule Step", ["there is no 'Step'", "Constant, Cosine, Linear"]),
        ("--model.schedule Cosine --model.schedule.warmup -1", ["schedule.warmup is -1"]),
    ],
)
def test_network_and_method(options: str, said: list[str], place: Path, refused: Callable[..., str]) -> None:
    sentence = refused("fit", "-c", "tiny.yaml", *options.split())
    assert all(words in sentence for words in said), sentence


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--trainer.max_steps many", ["trainer.max_steps is many: it must be a whole number"]),
        ("--trainer.max_steps", ["trainer.max_steps", "expected one argument"]),
        ("--trainer.max_steps -5", ["trainer:", "max_steps", "-5"]),
        ("--trainer.max_steps -1", ["nothing says when training ends"]),
        ("--trainer.precision bf17", ["trainer.precision is bf17", "bf16-mixed"]),
        ("--trainer.accelerator abacus", ["trainer:", "abacus", "cpu"]),
        ("--trainer.check_val_every_n_epoch 1 --trainer.val_check_interval 1000", ["trainer: `val_check_interval`"]),
        ("--seed_everything soon", ["seed_everything is soon"]),
        ("--run.checkpoints.every_n_steps 0", ["run.checkpoints.every_n_steps is 0"]),
        ("--run.name ../up", ["run.name is '../up'"]),
        ("--wandb.mode maybe", ["wandb.mode is maybe", "auto, online, offline, disabled"]),
        ("stray", ["'stray' belongs to no option"]),
    ],
)
def test_trainer_and_run(options: str, said: list[str], place: Path, refused: Callable[..., str]) -> None:
    sentence = refused("fit", "-c", "tiny.yaml", *options.split())
    assert all(words in sentence for words in said), sentence


def test_without_a_configuration(place: Path, refused: Callable[..., str]) -> None:
    assert "is missing: give it in a configuration file or on the command line" in refused("fit")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("show", "run is missing: ftlab show --help says what it is"),
        ("init", "directory is missing: ftlab init --help says what it is"),
        ("show --jsom x", "there is no option --jsom: did you mean --json?"),
        ("show --frob", "there is no option --frob: there are --json, --help"),
        ("completion --frob=1", "there is no option --frob: there are --help"),
    ],
)
def test_verbs_that_take_no_configuration(words: str, said: str, place: Path, refused: Callable[..., str]) -> None:
    assert refused(*words.split()) == said


def test_the_whole_trace_is_there_when_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ftlab.cli import main
    from ftlab.errors import UserError

    with pytest.raises(UserError, match=r"method\.r is 0"):
        main(["-v", "fit", "-c", "tiny.yaml", "--model.method.r", "0"])


def test_a_fault_in_the_users_own_code_is_shown_whole(place: Path) -> None:
    from ftlab.cli import main

    (place / "faulty.py").write_text("def score(prediction, references):\n    return 1 / 0\n")
    command = ["-c", "tiny.yaml", "--model.method", "ZeroShot", "--model.metrics", "[faulty.score]"]
    assert main(["fit", *command]) == 0
    with pytest.raises(ZeroDivisionError):
        main(["test", *command])
