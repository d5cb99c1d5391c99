"""The documentation against the code: inputs, defaults, settings, commands, links, and the Python example."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from pydantic import BaseModel

from lora_service.cli.main import cli
from lora_service.gateway.settings import GatewaySettings
from lora_service.generation.request import GenerateRequest
from lora_service.models.defaults import EMBEDDED, ModelDefaults
from lora_service.models.registry import REGISTRY
from lora_service.serving import entries, signature
from lora_service.serving.signature import EntryParameter
from lora_service.settings import Settings
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.inputs.resolved_config import TASKS

ROOT = Path(__file__).resolve().parents[1]
NOT_OURS = {".venv", "build", ".git", "demo", "models"}
MARKDOWN = sorted(
    path
    for path in ROOT.rglob("*.md")
    if path.relative_to(ROOT).parts[0] not in NOT_OURS and not {".cache", "node_modules"} & set(path.parts)
)
ENTRIES = [("Training", "train", TrainConfig), ("Inference", "predict", GenerateRequest)]
PACKAGES = [path.parent for path in sorted((ROOT / "lora_service").glob("*/**/__init__.py"))]
WORDS_OF_THE_README = 900


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(markdown: str, title: str) -> str:
    """The part under the heading ``title``, up to the next heading of its level or above."""
    match = re.search(rf"^(#+) {re.escape(title)}\n", markdown, re.MULTILINE)
    assert match, f"there is no heading {title!r}"
    rest = markdown[match.end() :]
    end = re.search(rf"^#{{1,{len(match[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(markdown: str) -> Iterator[list[str]]:
    """The cells of every line of every table."""
    for line in markdown.splitlines():
        if line.startswith("|") and not re.match(r"\|[-|]+$", line):
            yield [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def input_rows(title: str) -> dict[str, list[str]]:
    """The rows of ``docs/inputs.md`` by input, from the tables of four columns in a section."""
    inputs: dict[str, list[str]] = {}
    for cells in rows(section(text("docs/inputs.md"), title)):
        if len(cells) == 4 and cells[0] != "Input" and not cells[0].startswith("`lora_rank`, "):
            assert cells[0] not in inputs, f"{cells[0]} is documented twice"
            inputs[cells[0]] = cells
    return inputs


def parameters(mode: Any) -> dict[str, EntryParameter]:
    return {f"`{p.name}`": p for p in signature.read(entries.find(mode)).parameters}


def code(markdown: str) -> Iterator[str]:
    """Lines of code: fenced, indented, or spans in a sentence."""
    without_fences = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    for block in re.findall(r"^```\w*\n(.*?)^```", markdown, flags=re.MULTILINE | re.DOTALL):
        yield from block.splitlines()
    yield from (line.strip() for line in without_fences.splitlines() if line.startswith("    "))
    yield from re.findall(r"`([^`\n]+)`", without_fences)


def anchors(markdown: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", markdown, flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(("title", "mode", "model"), ENTRIES)
def test_every_input_is_documented_and_none_that_is_gone(title: str, mode: str, model: type[BaseModel]) -> None:
    documented = set(input_rows(title))
    assert documented == set(parameters(mode))
    assert documented >= {f"`{name}`" for name in model.model_fields}


@pytest.mark.parametrize(("title", "mode"), [entry[:2] for entry in ENTRIES])
def test_documented_defaults_and_choices_are_those_of_the_form(title: str, mode: str) -> None:
    documented = input_rows(title)
    for name, parameter in parameters(mode).items():
        _, default, meaning, _ = documented[name]
        if parameter.default in (None, ""):
            assert default.startswith(("empty", "by base", "by task")), name
        else:
            value = parameter.default
            assert default == f"`{str(value).lower() if isinstance(value, bool) else value}`", name
        if isinstance(parameter.choices, tuple):
            assert [c for c in parameter.choices if f"`{c}`" not in meaning] == [], name


def test_documented_defaults_by_task_are_those_of_the_tasks() -> None:
    header, *table = rows(section(text("docs/inputs.md"), "Defaults by task"))
    assert header[1:] == [f"`{name}`" for name in TASKS]
    for name, *values in table:
        if name.startswith("`") and "," not in name:
            expected = [getattr(task, name.strip("`")) for task in TASKS.values()]
            assert [value == "true" if value in ("true", "false") else float(value) for value in values] == expected


def test_documented_defaults_by_base_are_those_of_the_bases() -> None:
    header, *table = rows(section(text("docs/inputs.md"), "Defaults by base"))
    bases = {"embedded": ModelDefaults.read(EMBEDDED / "base.json")} | {n: b.defaults for n, b in REGISTRY.items()}
    assert header[1:] == [f"`{name}`" for name in bases]
    for names, *values in table:
        field = re.findall(r"`(\w+)`", names)[0]
        expected = [getattr(base, field) for base in bases.values()]
        assert [value == "true" if value in ("true", "false") else float(value) for value in values] == expected


SETTINGS = [("Environment variables", Settings), ("The gateway", GatewaySettings)]


def documented_settings(title: str) -> dict[str, str]:
    """The defaults of a table of settings by name, as they are written."""
    table = rows(section(text("docs/settings.md"), title))
    return {cells[0].strip("`"): cells[1] for cells in table if cells[0].startswith("`")}


@pytest.mark.parametrize(("title", "settings"), SETTINGS)
def test_every_setting_is_documented_and_none_that_is_gone(title: str, settings: type[BaseModel]) -> None:
    assert set(documented_settings(title)) == {name.upper() for name in settings.model_fields}


def test_documented_numbers_of_the_gateway_are_its_defaults() -> None:
    units = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
    defaults = {name.upper(): field.default for name, field in GatewaySettings.model_fields.items()}
    numbers = {name: text for name, text in documented_settings("The gateway").items() if text[:1].isdigit()}
    assert set(numbers) == {name for name, value in defaults.items() if type(value) in (int, float)}
    for name, written in numbers.items():
        number, _, unit = written.partition(" ")
        assert int(number.replace(",", "")) * units.get(unit, 1) == defaults[name], name


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(path: Path) -> None:
    markdown = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", markdown):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name) if name else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_documented_commands_and_their_options_exist(path: Path) -> None:
    for line in code(path.read_text(encoding="utf-8")):
        for words in re.findall(r"lora-service ((?:[\w-]+)(?: [^|#]*)?)", line):
            name, *rest = words.split()
            if name.startswith("-"):
                continue
            context = click.Context(cli)
            command = cli.get_command(context, name)
            assert command is not None, line
            if isinstance(command, click.Group) and rest:
                assert set(rest[0].split("|")) <= set(command.list_commands(context)), line
                command = command.get_command(context, rest[0].split("|")[0]) or command
            options = [option for p in command.params for option in (*p.opts, *p.secondary_opts)]
            known = {option.replace("-", "_") for option in (*options, "--help", "-h")}
            used = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
            assert {option.replace("-", "_") for option in used} <= known, line


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_package_lists_its_modules_and_none_that_is_gone(package: Path) -> None:
    listing = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    listed = set(
        re.findall(r"^ *(?:``)?([a-z][a-z0-9_]*)(?:``|\.py|/| ) +\S", listing.partition("\n")[2], re.MULTILINE)
    )
    modules = {path.stem for path in package.glob("[!_]*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    assert modules <= listed
    marked = set(re.findall(r"^ *(?:``)?([a-z][a-z0-9_]*)(?:``|\.py|/) ", listing, re.MULTILINE))
    assert marked <= modules | {path.name for path in package.iterdir() if path.is_dir()}


def test_the_readme_is_one_page() -> None:
    assert len(text("README.md").split()) < WORDS_OF_THE_README


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search(r"```python\n(.*?)```", text("docs/python-api.md"), re.DOTALL)
    assert example
    shutil.copyfile(ROOT / "lora_service/demo/subject.zip", tmp_path / "monster.zip")
    monkeypatch.chdir(tmp_path)
    few = re.sub(r'("(?:max_train_steps_\w+|num_inference_steps)"): \d+', r"\1: 2", example[1])
    assert few.count(": 2,") == 3
    exec(compile(few, "docs/python-api.md", "exec"), {})
    assert (tmp_path / "monster.safetensors").stat().st_size > 100_000
    assert list(tmp_path.glob("*.png"))


def test_github_reads_the_workflow_and_the_templates_and_the_versions_are_those_of_the_package() -> None:
    github = ROOT / ".github"
    documents = {path.name: yaml.safe_load(path.read_text()) for path in github.rglob("*.yml")}
    assert {"checks.yml", "bug.yml", "feature.yml", "config.yml"} <= set(documents)
    versions = documents["checks.yml"]["jobs"]["checks"]["strategy"]["matrix"]["python"]
    least, above = re.findall(r"3\.(\d+)", re.search(r'requires-python = "(.*)"', text("pyproject.toml"))[1])  # type: ignore[index]
    assert versions == [f"3.{minor}" for minor in range(int(least), int(above))]
    cog = yaml.safe_load(text("cog.yaml"))["build"]["sdk_version"]
    assert documents["checks.yml"]["jobs"]["images"]["env"]["COG"] == f"v{cog}"
