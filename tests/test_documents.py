"""What the documents say: links that lead somewhere, code that would run, numbers that stand in the tables."""

import ast
import inspect
import re
import tomllib
from pathlib import Path

import pytest
import typer

from fsth_hub import FsthPipeline
from fsth_hub.cli.main import app
from training import benchmark_tables
from training.evaluation.report import BEGIN, END


ROOT = Path(__file__).parents[1]
README, EVALUATION = ROOT / "README.md", ROOT / "docs" / "evaluation.md"
CARD = ROOT / "fsth_hub" / "checkpoints" / "small" / "README.md"
DOCUMENTS = [
    README, EVALUATION, CARD, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md",
    ROOT / "docs" / "architecture.md", ROOT / "docs" / "batch.md", ROOT / "docs" / "compared.md",
    ROOT / "docs" / "training.md",
    ROOT / "training" / "README.md", ROOT / "training" / "LOG.md", ROOT / "fsth_hub" / "examples" / "README.md",
]  # fmt: skip
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)


def commands(path: Path, start: str) -> list[list[str]]:
    """The words of a document's shell lines that start so, without what comes after a #."""
    text = "\n".join(blocks(path, "bash")).replace("\\\n", " ")
    return [line.split(" #")[0].split() for line in text.splitlines() if line.startswith(start)]


def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def tables(path: Path) -> str:
    return path.read_text().split(BEGIN)[1].split(END)[0]


@each_document
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each_document
def test_python_has_no_errors_and_what_it_imports_of_us_exists(path):
    for block in blocks(path, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("fsth_hub"):
                exec(compile(ast.Module([node], []), str(path), "exec"), {})


@each_document
def test_commands_and_scripts_exist(path):
    known = typer.main.get_command(app).commands
    for _, name, *words in commands(path, "fsth "):
        options = {option for parameter in known[name].params for option in parameter.opts + parameter.secondary_opts}
        assert {word for word in words if word.startswith("--")} <= options, (name, words)
    for _, script, *_ in commands(path, "python ") + commands(path, "accelerate launch "):
        assert not script.endswith(".py") or (ROOT / script).exists(), script


def test_options_in_the_readme_are_the_pipeline_s_and_the_command_s():
    names = re.findall(r"^\| `(\w+)` \| (?:`(--[\w-]+)`)? ?\|", README.read_text(), re.MULTILINE)
    parameters = inspect.signature(FsthPipeline.__call__).parameters
    options = {
        option for parameter in typer.main.get_command(app).commands["animate"].params for option in parameter.opts
    }
    assert len(names) >= 7
    assert all(name in parameters and (not option or option in options) for name, option in names)


def test_readme_is_short_and_its_numbers_stand_in_the_tables():
    text = README.read_text()
    assert len(text.splitlines()) <= 160 and BEGIN not in text
    summary = text.split("## How good it is")[1].split("**Limits.**")[0]
    numbers = re.findall(r"\d+\.\d+|\d+(?= ms)", summary)
    measured = tables(EVALUATION) + EVALUATION.read_text().split(benchmark_tables.BEGIN)[1]
    assert len(numbers) > 12 and set(numbers) <= set(re.findall(r"\d+\.\d+|\d+", measured))


def test_what_is_said_of_the_tables_stands_in_them():
    said = EVALUATION.read_text().split("## What the tables show")[1].split("The times in the tables")[0]
    numbers = re.findall(r"(?<![\d.])\d\.\d+(?! GFLOP)", said)
    assert len(numbers) > 12 and set(numbers) <= set(re.findall(r"\d+\.\d+", tables(EVALUATION)))


def test_evaluation_and_model_card_have_the_same_tables():
    assert tables(EVALUATION) == tables(CARD)


def test_package_declares_both_licences_and_its_types():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"Apache-2.0", "LicenseRef-FSTH-Weights"} <= set(project["license"].split(" AND "))
    found = {path.name for pattern in project["license-files"] for path in ROOT.glob(pattern)}
    assert {
        "LICENSE",
        "LICENSE-WEIGHTS",
        "NOTICE",
        "LICENSE-yunet.txt",
        "LICENSE-mediapipe.txt",
        "LICENSE-vgg16.txt",
    } == found
    assert (ROOT / "fsth_hub" / "py.typed").exists()
