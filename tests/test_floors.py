"""The floors of DESIGN.md: every import runs down, and what is a method's own business stays with the methods."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ftlab
import ftlab.methods

PACKAGE = Path(ftlab.__file__).parent
FLOORS = [
    {"__init__", "errors", "pages", "console"},
    {"printed_above", "yaml_files"},
    {"progress"},
    {"attention"},
    {"networks"},
    {"methods", "data", "evaluation", "runs"},  # these know nothing of each other
    {"modules", "cluster"},
    {"callbacks"},
    {"sweeps", "reports", "planning"},
    {"testing"},
    {"cli"},
    {"__main__"},
]
METHODS = set(ftlab.methods.__all__) - {"Method"}


def sources(package: Path = PACKAGE) -> list[Path]:
    return sorted(package.rglob("*.py"))


def part(file: Path, package: Path = PACKAGE) -> str:
    """The part of ftlab that a file belongs to: its file or directory right under the package."""
    return file.relative_to(package).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if name in names)


def imported(file: Path, package: Path = PACKAGE) -> Iterator[str]:
    """Dotted names of all that a file imports, wherever in it, relative ones resolved."""
    parents = ("ftlab", *file.relative_to(package).parts[:-1])
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = list(parents[: len(parents) - node.level + 1]) if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def upward(file: Path, package: Path = PACKAGE) -> list[str]:
    """The imports of a file that run up, or across to another part of the same floor."""
    here = part(file, package)
    wrong = []
    for name in imported(file, package):
        if name.split(".")[0] != "ftlab":
            continue
        second = [*name.split("."), "__init__"][1]
        known = any(second in names for names in FLOORS)
        there = second if known else "__init__"  # `from ftlab import __version__`
        if there != here and floor(there) >= floor(here):
            wrong.append(name)
    return wrong


def foreign_knowledge(file: Path) -> list[str]:
    """Names of methods, and questions about what a method is, in the code of a file."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Name) and node.id in METHODS:
            found.append(node.id)
        elif isinstance(node, ast.Attribute) and node.attr in METHODS:
            found.append(node.attr)
        elif isinstance(node, ast.alias) and node.name.split(".")[-1] in METHODS:
            found.append(node.name)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            asks = node.func.id in ("isinstance", "issubclass") and len(node.args) == 2
            if asks and (_last(node.args[0]) == "method" or "Method" in map(_last, ast.walk(node.args[1]))):
                found.append(ast.unparse(node))
    return found


def _last(node: ast.AST) -> str | None:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def test_every_part_has_its_floor() -> None:
    assert {part(file) for file in sources()} <= set().union(*FLOORS)


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_down(file: Path) -> None:
    assert upward(file) == []


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("networks.py", "from ftlab.methods import Method"),
        ("methods/lora.py", "    from ftlab import modules"),
        ("methods/lora.py", "from ..data.batching import Batch"),
        ("methods/deep/er.py", "from ... import runs"),
        ("data/module.py", "import ftlab.methods.base"),
        ("modules/finetune.py", "from ftlab.callbacks import Checkpoints"),
        ("errors.py", "from ftlab.networks import Network"),
    ],
)
def test_an_import_that_runs_up_is_found(tmp_path: Path, place: str, line: str) -> None:
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"def late():\n{line}\n" if line.startswith(" ") else f"{line}\n")
    assert len(upward(file, tmp_path)) == 1


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("methods/lora.py", "from .peft import Peft"),
        ("methods/lora.py", "from ..networks import Network"),
        ("callbacks/export.py", "from ftlab.runs import Run"),
        ("cli/verbs.py", "from ftlab import __version__"),
    ],
)
def test_an_import_that_runs_down_is_not(tmp_path: Path, place: str, line: str) -> None:
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{line}\n")
    assert upward(file, tmp_path) == []


@pytest.mark.parametrize("name", ["attention", "networks", "methods", "errors"])
def test_methods_and_networks_need_no_lightning(name: str) -> None:
    files = [file for file in sources() if part(file) == name]
    assert files
    used = {imported_name.split(".")[0] for file in files for imported_name in imported(file)}
    assert not used & {"lightning", "lightning_fabric", "pytorch_lightning"}


@pytest.mark.parametrize(
    "file",
    [file for file in sources() if part(file) != "methods"],
    ids=lambda file: str(file.relative_to(PACKAGE)),
)
def test_nothing_outside_methods_knows_a_method(file: Path) -> None:
    assert foreign_knowledge(file) == []


@pytest.mark.parametrize(
    "line",
    [
        "from ftlab.methods import QLoRA",
        "from ftlab.methods.lora import LoRA as Adapter",
        "x = methods.Full()",
        "isinstance(self.method, object)",
        "isinstance(x, (int, base.Method))",
    ],
)
def test_knowledge_of_a_method_is_found(tmp_path: Path, line: str) -> None:
    file = tmp_path / "x.py"
    file.write_text(f"{line}\n")
    assert foreign_knowledge(file)


def test_texts_may_name_methods(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text('"""LoRA."""\nname = "QLoRA"  # Full\n')
    assert foreign_knowledge(file) == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["no-such-verb"], []])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys; from ftlab.cli import main; main(sys.argv[1:]); "
        "sys.exit(', '.join({'torch', 'lightning', 'transformers', 'peft', 'jsonargparse'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
