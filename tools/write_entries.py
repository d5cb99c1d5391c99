"""Write the inputs of ``train.py`` and ``predict.py`` from the configs: ``python -m tools.write_entries [--check]``.

Cog's build reads the entries without running them, so each input is spelled out there as literals. Header, name, return
type and body of an entry do not change.
"""

from __future__ import annotations

import ast
import subprocess
import sys

import click

from lora_service.serving import entries
from lora_service.serving.entries import Mode
from lora_service.serving.form import FormInput, form_inputs

MODES: tuple[Mode, ...] = ("train", "predict")


def rewrite(mode: Mode, source: str) -> str:
    """Return the source of an entry with the inputs as they are declared now, formatted by ruff."""
    function = _function(mode, ast.parse(source))
    arguments = [argument for argument in function.args.args if argument.arg != "self"]
    first, last = arguments[0].lineno, max(default.end_lineno or 0 for default in function.args.defaults)
    lines = source.splitlines(keepends=True)
    parameters = [f"{parameter(each)},\n" for each in form_inputs(mode)]
    return _formatted("".join([*lines[: first - 1], *parameters, *lines[last:]]))


def parameter(form_input: FormInput) -> str:
    """Return an input as a parameter in the source of an entry, on one line."""
    arguments = {"default": form_input.default, **form_input.limits}
    if form_input.choices:
        arguments["choices"] = list(form_input.choices)
    arguments["description"] = form_input.description
    spelled = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"{form_input.name}: {form_input.type}{' | None' * form_input.optional} = Input({spelled})"


def _function(mode: Mode, tree: ast.Module) -> ast.FunctionDef:
    """Return the function whose parameters are the form: the entry itself, or ``run`` of its class."""
    name = entries.find(mode).name
    named = next(node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name)
    if isinstance(named, ast.FunctionDef):
        return named
    return next(node for node in named.body if isinstance(node, ast.FunctionDef) and node.name == "run")


def _formatted(source: str) -> str:
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(entries.HOME / "train.py"), "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"ruff could not format the entry: {done.stderr.strip()}")
    return done.stdout


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if an entry is not up to date.")
def main(check: bool) -> None:
    """Write the inputs of train.py and predict.py from TrainConfig and GenerateRequest."""
    stale = []
    for mode in MODES:
        path = entries.find(mode).path
        source = path.read_text(encoding="utf-8")
        written = rewrite(mode, source)
        if written != source:
            stale.append(path.name)
            if not check:
                path.write_text(written, encoding="utf-8")
    click.echo(f"{'not up to date' if check else 'written'}: {', '.join(stale)}" if stale else "up to date")
    sys.exit(bool(check and stale))


if __name__ == "__main__":
    main()
