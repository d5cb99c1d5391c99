"""An entry's source is read by the rules of Cog's build: one test row per rule, as observed with the build."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_service.errors import EntryError
from lora_service.serving import entries, signature
from lora_service.serving.entries import EntryParameter, EntryPoint, EntrySignature, Missing
from tests.errors import raises

HEAD = """\
from typing import Iterator, List, Optional, Union
from cog import BaseModel, Input, Path, Secret
from somewhere import IMPORTED

NAMES = ["a", "b"]
MORE: list[str] = ["c"]
FIXED = ("a", "b")
TABLE = {"a": 1, "b": 2}
SIX = 6
WORDS = "some words"
BROKEN = "two" "halves"
TWICE = 1
TWICE = 2
"""


def read(folder: Path, source: str, name: str = "train", file: str = "train.py") -> EntrySignature:
    path = folder / file
    path.write_text(HEAD + source)
    return signature.read(EntryPoint(path, name))


@pytest.fixture
def one(tmp_path: Path):
    """Read a function with one input, written as ``name: type = default``."""

    def parameter(argument: str) -> EntryParameter:
        (only,) = read(tmp_path, f"def train({argument}) -> Path: ...\n").parameters
        return only

    return parameter


@pytest.mark.parametrize(
    ("choices", "values"),
    [
        ('["x", "y"]', ("x", "y")),
        ("[1, 2]", (1, 2)),
        ("NAMES", ("a", "b")),
        ("FIXED", ("a", "b")),
        ("list(TABLE.keys())", ("a", "b")),
        ("list(TABLE.values())", (1, 2)),
        ('NAMES + ["z"]', ("a", "b", "z")),
        ("NAMES + MORE", ("a", "b", "c")),
    ],
)
def test_choices_that_the_build_resolves(one, choices, values) -> None:
    kind = "int" if isinstance(values[0], int) else "str"
    assert one(f"x: {kind} = Input(choices={choices})").choices == values


@pytest.mark.parametrize(
    "choices",
    [
        '("x", "y")',
        "sorted(NAMES)",
        "list(TABLE)",
        "[name for name in NAMES]",
        "IMPORTED",
        "list(IMPORTED.keys())",
        "[IMPORTED]",
        '[("x"), "y"]',
        '["x",  # the first\n "y"]',
        "TWICE",
        "Colour",
    ],
)
def test_choices_that_the_build_refuses(one, choices) -> None:
    with raises(EntryError, code="unreadable_value", field="x"):
        one(f"x: str = Input(choices={choices})")


@pytest.mark.parametrize(
    ("default", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("1e-4", 1e-4),
        ("'word'", "word"),
        ('""', ""),
        ("True", True),
        ("SIX", 6),
        ("[1, 2]", [1, 2]),
        ("(1, 2)", [1, 2]),
        ("{'a': 1}", {"a": 1}),
        (r"r'\d'", r"\d"),
        ('"""a\nb"""', "a\nb"),
    ],
)
@pytest.mark.parametrize("form", ["x: str = {}", "x: str = Input(default={})"])
def test_defaults_that_the_build_resolves(one, form, default, value) -> None:
    parameter = one(form.format(default))
    assert parameter.default == value
    assert not parameter.required


@pytest.mark.parametrize(
    "default",
    ["2*3", "IMPORTED", "TWICE", "('word')", "f'{1}'", "BROKEN", "'a' 'b'", r"'a\n'", "2**40", "b'x'", "0x10", "1_000"],
)
@pytest.mark.parametrize("form", ["x: str = {}", "x: str = Input(default={})"])
def test_defaults_that_would_make_the_field_required_or_garble_it(one, form, default) -> None:
    with raises(EntryError, code="unreadable_value", field="x"):
        one(form.format(default))


def test_a_default_larger_than_64_bits_is_refused(one) -> None:
    with raises(EntryError, code="unreadable_value", field="x") as caught:
        one("x: int = 9223372036854775808")
    assert "9223372036854775807" in str(caught.value)


def test_a_positional_default_is_refused(one) -> None:
    with raises(EntryError, code="unreadable_value", field="x") as caught:
        one("x: int = Input(3)")
    assert caught.value.place == "train.py:14"
    assert "`3`" in str(caught.value)


@pytest.mark.parametrize("keyword", ["default_factory=list", "title='x'", "**TABLE"])
def test_arguments_of_input_that_are_no_literals_are_refused(one, keyword) -> None:
    with raises(EntryError, code="unreadable_value", field="x") as caught:
        one(f"x: str = Input({keyword})")
    assert f"Input(`{keyword.partition('=')[0].replace('TABLE', '')}`)" in str(caught.value)


def test_another_call_as_default_is_refused(one) -> None:
    with raises(EntryError, code="unreadable_value", field="x") as caught:
        one("x: str = make()")
    assert "`make`" in str(caught.value)


@pytest.mark.parametrize(
    ("note", "key", "value"),
    [
        ("ge=1", "minimum", 1),
        ("ge=-2", "minimum", -2),
        ("le=0.5", "maximum", 0.5),
        ("le=1.0", "maximum", 1),
        ("min_length=1", "minLength", 1),
        ("max_length=9", "maxLength", 9),
        (r"regex=r'^\w+$'", "pattern", r"^\w+$"),
        ("description='Plain.'", "description", "Plain."),
        ("description=WORDS", "description", "some words"),
        ("deprecated=True", "deprecated", True),
        ("accept='image/*'", "x-cog-accept", "image/*"),
    ],
)
def test_limits_and_notes_that_the_build_keeps(one, note, key, value) -> None:
    assert one(f"x: str = Input({note})").notes == {key: value}


@pytest.mark.parametrize(
    "note",
    [
        "ge=SIX",
        "le=2 * 3",
        "le=2**31",
        "ge=IMPORTED",
        "ge=(1)",
        "ge='1'",
        "min_length=SIX",
        "max_length=SIX",
        "regex=WORDS",
        "deprecated=SIX",
        "description=f'{SIX} words'",
        "description=IMPORTED",
        "description=('a' 'b')",
        "description=('ab')",
        "description='a' 'b'",
        "description=BROKEN",
        "description=SIX",
        r"description='a \"quoted\" word'",
    ],
)
def test_limits_and_notes_that_the_build_would_drop_or_garble(one, note) -> None:
    with raises(EntryError, code="unreadable_value", field="x"):
        one(f"x: int = Input({note})")


@pytest.mark.parametrize(
    ("annotation", "schema", "optional"),
    [
        ("str", {"type": "string"}, False),
        ("int", {"type": "integer"}, False),
        ("float", {"type": "number"}, False),
        ("bool", {"type": "boolean"}, False),
        ("Path", {"type": "string", "format": "uri"}, False),
        ("Secret", {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True}, False),
        ("Optional[int]", {"type": "integer"}, True),
        ("Path | None", {"type": "string", "format": "uri"}, True),
        ("Union[float, None]", {"type": "number"}, True),
        ("list[Path]", {"type": "array", "items": {"type": "string", "format": "uri"}}, False),
        ("Optional[List[str]]", {"type": "array", "items": {"type": "string"}}, True),
        ("str | int", {"anyOf": [{"type": "string"}, {"type": "integer"}]}, False),
    ],
)
def test_input_types_that_cog_takes(one, annotation, schema, optional) -> None:
    kind = one(f"x: {annotation}").type
    assert (kind.schema(), kind.optional) == (schema, optional)


@pytest.mark.parametrize(
    "annotation",
    [
        "Literal['a']",
        "Colour",
        "tuple[int, int]",
        "bytes",
        "Path | str",
        "list[Optional[int]]",
        "list[list[int]]",
        "dict",
    ],
)
def test_input_types_that_cog_refuses(one, annotation) -> None:
    with raises(EntryError, code="unsupported_type", field="x") as caught:
        one(f"x: {annotation}")
    assert f"`{annotation}`" in str(caught.value)


def test_a_path_that_is_not_cogs_is_refused(tmp_path) -> None:
    path = tmp_path / "train.py"
    path.write_text("from pathlib import Path\ndef train(x: Path) -> str: ...\n")
    with raises(EntryError, code="unsupported_type", field="x") as caught:
        signature.read(EntryPoint(path, "train"))
    assert caught.value.place == "train.py:2"
    assert "from cog import Path" in str(caught.value)


@pytest.mark.parametrize("default", ["None", "Input(default=None)"])
def test_none_as_default_needs_optional(one, default) -> None:
    with raises(EntryError, code="invalid_default", field="x"):
        one(f"x: Path = {default}")
    assert one(f"x: Optional[Path] = {default}").default is None


def test_optional_without_a_default_is_not_required(one) -> None:
    parameter = one("x: Optional[Path]")
    assert parameter.default is Missing.DEFAULT
    assert not parameter.required


@pytest.mark.parametrize(
    ("argument", "code"),
    [
        ("x: str = Input(default='c', choices=NAMES)", "invalid_default"),
        ("x: int = Input(default=0, ge=1)", "invalid_default"),
        ("x: float = Input(default=1.5, le=1)", "invalid_default"),
        ("x: list[str] = Input(choices=NAMES)", "unsupported_type"),
        ("x", "unsupported_type"),
    ],
)
def test_defaults_and_types_that_no_client_could_use(one, argument, code) -> None:
    with raises(EntryError, code=code, field="x"):
        one(argument)


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        ("Path", {"type": "string", "format": "uri"}),
        ("list[Path]", {"type": "array", "items": {"type": "string", "format": "uri"}}),
        (
            "Iterator[Path]",
            {"type": "array", "items": {"type": "string", "format": "uri"}, "x-cog-array-type": "iterator"},
        ),
        ("dict", {"type": "object"}),
        ("dict[str, int]", {"type": "object", "additionalProperties": {"type": "integer"}}),
        (
            "Result",
            {
                "type": "object",
                "properties": {
                    "file": {"type": "string", "format": "uri", "title": "File"},
                    "last_loss": {"type": "number", "title": "Last Loss", "nullable": True},
                },
                "required": ["file"],
            },
        ),
    ],
)
def test_output_types_that_cog_takes(tmp_path, annotation, schema) -> None:
    model = "class Result(BaseModel):\n    file: Path\n    last_loss: Optional[float] = None\n"
    output = read(tmp_path, f"{model}def train() -> {annotation}: ...\n").output
    assert output == {"title": "Output"} | schema


@pytest.mark.parametrize("annotation", ["-> Optional[Path]", "-> tuple[Path, Path]", "-> Generator", "-> None", ""])
def test_output_types_that_cog_refuses(tmp_path, annotation) -> None:
    with raises(EntryError, code="unsupported_type", field="train") as caught:
        read(tmp_path, f"def train() {annotation}: ...\n")
    assert caught.value.place == "train.py:14"


def test_a_class_is_read_by_its_run(tmp_path) -> None:
    source = "class Predictor:\n    def setup(self): ...\n    def run(self, prompt: str, *, n: int = 2) -> Path: ...\n"
    names = [parameter.name for parameter in read(tmp_path, source, "Predictor").parameters]
    assert names == ["prompt", "n"]


@pytest.mark.parametrize(
    ("source", "code", "line"),
    [
        ("@torch.inference_mode()\ndef train() -> Path: ...", "unsupported_signature", 14),
        ("class train:\n    @wraps\n    def run(self) -> Path: ...", "unsupported_signature", 15),
        ("class train:\n    def predict(self) -> Path: ...", "entry_missing", 14),
        ("def learn() -> Path: ...", "entry_missing", 1),
        ("def train(*pictures: Path) -> Path: ...", "unsupported_signature", 14),
        ("def train(:", "syntax_error", 14),
    ],
)
def test_functions_that_cog_would_break(tmp_path, source, code, line) -> None:
    with raises(EntryError, code=code) as caught:
        read(tmp_path, source)
    assert caught.value.place == f"train.py:{line}"


def test_choices_that_differ_under_one_name_are_refused(tmp_path) -> None:
    predict = read(tmp_path, 'def p(kind: str = Input(choices=["png"])) -> Path: ...', "p", "predict.py")
    other = read(tmp_path, 'def train(kind: str = Input(choices=["kohya"])) -> Path: ...')
    same = read(tmp_path, 'def train(kind: str = Input(choices=["png"]), n: int = 1) -> Path: ...')
    entries.check_shared_choices(predict, same)
    with raises(EntryError, code="conflicting_choices", field="kind") as caught:
        entries.check_shared_choices(predict, other)
    assert caught.value.place == "train.py:14"
    assert "predict.py" in str(caught.value)
