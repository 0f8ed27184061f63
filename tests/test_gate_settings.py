"""The settings of a gate: where they are found, what is refused and where it says so, and the schema for editors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustbench_lite.errors import UsageError
from robustbench_lite.gate import settings as settings_module
from robustbench_lite.gate.settings import File, Settings, line_of, read_settings, schema

WHOLE = """# a gate
[gate]
model = "digits_pgd_at"
attacks = ["pgd", "square:steps=200"]
eps = ["8/255", 0.15]
corruptions = ["fog:severity=3"]
limit = 300
rules = [
  "clean.accuracy >= 0.9",
  # the floor
  "pgd.accuracy >= 0.45",
  'pgd.accuracy >= 0.4',
]
"""


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(text: str, file: str = "robust-eval.toml", **overrides: object) -> str:
    Path(file).write_text(text)
    with pytest.raises(UsageError) as error:
        read_settings(None, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_file() -> None:
    Path("robust-eval.toml").write_text(WHOLE)
    asked = read_settings()
    assert asked.file == "robust-eval.toml"
    assert asked.settings == Settings(
        model="digits_pgd_at",
        attacks=["pgd", "square:steps=200"],
        eps=["8/255", 0.15],
        corruptions=["fog:severity=3"],
        limit=300,
        rules=["clean.accuracy >= 0.9", "pgd.accuracy >= 0.45", "pgd.accuracy >= 0.4"],
    )
    assert asked.lines == [9, 11, 12]


def test_defaults_are_the_careful_ones() -> None:
    made = Settings(model="m")
    assert (made.alpha, made.margin, made.on_inconclusive, made.fast, made.sequential) == (0.05, 0.02, None, True, False)


def test_pyproject() -> None:
    ours = '[tool.robust-eval.gate]\nmodel = "digits_cnn"\nrules = ["clean.accuracy >= 0.9"]\n'
    Path("pyproject.toml").write_text(f'[project]\nname = "x"\n\n{ours}\n[tool.other]\nrules = 1\n')
    asked = read_settings()
    assert (asked.file, asked.settings.model, asked.lines) == ("pyproject.toml", "digits_cnn", [6])


def test_its_own_file_goes_before_pyproject_and_a_named_one_before_both() -> None:
    for file, model in (("pyproject.toml", "a"), ("robust-eval.toml", "b"), ("other.toml", "c")):
        table = "tool.robust-eval.gate" if file == "pyproject.toml" else "gate"
        Path(file).write_text(f'[{table}]\nmodel = "{model}"\nrules = ["clean.accuracy > 0.5"]\n')
    assert read_settings().settings.model == "b"
    assert read_settings(Path("other.toml")).settings.model == "c"
    assert read_settings(Path("pyproject.toml")).settings.model == "a"
    Path("robust-eval.toml").unlink()
    assert read_settings().settings.model == "a"


def test_what_is_given_beside_the_file_goes_first() -> None:
    Path("robust-eval.toml").write_text(WHOLE)
    asked = read_settings(None, {"model": "digits_standard", "limit": 30})
    assert (asked.settings.model, asked.settings.limit, asked.settings.attacks) == ("digits_standard", 30, ["pgd", "square:steps=200"])
    assert read_settings(None, {"rules": ["clean.accuracy >= 0.1"]}).lines == [None]


def test_without_a_file() -> None:
    asked = read_settings(None, {"model": "digits_cnn", "rules": ["clean.accuracy >= 0.9"]})
    assert (asked.file, asked.settings.model) == ("", "digits_cnn")


def test_nothing_at_all_says_how_to_start() -> None:
    with pytest.raises(UsageError) as error:
        read_settings()
    for words in ("no robust-eval.toml here", "pyproject.toml", "[gate]", 'model = "digits_cnn"', "rules = [", "--rule"):
        assert words in str(error.value)


def test_a_pyproject_without_our_table_is_not_ours() -> None:
    assert "no robust-eval.toml here" in refused('[project]\nname = "x"\n', "pyproject.toml")


GATE = '[gate]\nmodel = "digits_cnn"\nrules = ["clean.accuracy >= 0.9"]\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[gate]\nmodel = "digits_cnn\n', ["robust-eval.toml cannot be read", "at line 2, column 20"]),
        ("[gate]\nmodel =", ["robust-eval.toml cannot be read", "at line 2, column 8"]),
        ("[gate]\nrules = [", ["at line 2, column 10"]),
        (GATE + "limitt = 3\n", ["robust-eval.toml, line 4:", "no setting 'gate.limitt'", "did you mean 'limit'"]),
        (GATE + "[gate.nested]\na = 1\n", ["line 4:", "no setting 'gate.nested'"]),
        (GATE + "[gait]\na = 1\n", ["line 4:", "no setting 'gait'", "did you mean 'gate'"]),
        (GATE + 'limit = "30"\n', ["line 4:", "limit", "valid integer", '"30"']),
        (GATE + "limit = 0\n", ["line 4:", "greater than or equal to 1, got 0"]),
        (GATE + 'attacks = "pgd"\n', ["line 4:", "attacks", "valid list", '"pgd"']),
        (GATE + "attacks = [\n  3\n]\n", ["line 4:", "attacks", "valid string, got 3"]),
        (GATE + 'on_inconclusive = "maybe"\n', ["line 4:", "'fail', 'warn' or 'pass'", "maybe"]),
        (GATE + "alpha = 5\n", ["line 4:", "alpha", "less than 0.5, got 5"]),
        (GATE + "margin = 2\n", ["line 4:", "margin", "less than 1, got 2"]),
        (GATE + 'norm = "l3"\n', ["line 4:", "'spatial', 'colour' or 'flow'"]),
        (GATE + 'doubt = "yes"\n', ["line 4:", "valid boolean"]),
        ('[gate]\nrules = ["clean.accuracy >= 0.9"]\n', ["line 1:", "gate.model is missing"]),
        ('[gate]\nmodel = "digits_cnn"\n', ["line 1:", "there are no rules", "rules = ["]),
        ('[gate]\nmodel = "digits_cnn"\nrules = []\n', ["there are no rules"]),
        ("gate = 3\n", ["line 1:", "gate: input should be", "got 3"]),
        ("", ["gate.model is missing", "[gate]"]),
        (GATE.replace("model", "modell"), ["line 2:", "no setting 'gate.modell'", "did you mean 'model'"]),
    ],
)
def test_refused(text: str, words: list[str]) -> None:
    said = refused(text)
    for each in words:
        assert each in said, said


def test_unknown_key_in_pyproject() -> None:
    assert "pyproject.toml, line 1: there is no setting 'gates': did you mean 'gate'?" in refused(
        "[tool.robust-eval.gates]\na = 1\n", "pyproject.toml"
    )


def test_not_text() -> None:
    Path("robust-eval.toml").write_bytes(b'[gate]\nmodel = "\xff"\n')
    with pytest.raises(UsageError, match=r"not UTF-8 \(at line 2, column 10\)"):
        read_settings()


def test_no_such_file() -> None:
    with pytest.raises(UsageError, match=r"nothing.toml cannot be read \(No such file or directory\): name the settings file"):
        read_settings(Path("nothing.toml"))


def test_a_bad_option_is_named_as_an_option() -> None:
    said = refused(GATE, limit=0)
    assert said.startswith("--limit: input should be greater than or equal to 1")


def test_lines() -> None:
    text = '[other]\nlimit = 1\n[tool.robust-eval."gate"]\n# limit = 2\n"limit" = 3\n[after]\nlimit = 4'
    assert line_of(text, "limit") == 5
    assert line_of("gate.limit = 3", "limit") == 1
    assert line_of('gate = {limit = 3, model = "m"}', "gate") == 1


def test_schema_is_shipped_as_the_models_say() -> None:
    shipped = Path(settings_module.__file__).with_name("schema.json").read_text(encoding="utf-8")
    assert shipped == schema(), "make it again: python -m robustbench_lite.gate.settings > robustbench_lite/gate/schema.json"
    said = json.loads(shipped)
    gate = said["$defs"]["Settings"]
    assert set(gate["properties"]) == set(Settings.model_fields)
    assert all("description" in each for each in gate["properties"].values())
    assert gate["additionalProperties"] is False
    assert set(File.model_fields) == {"gate"}
