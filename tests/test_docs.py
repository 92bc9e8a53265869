"""What README and docs say is what the program does: commands, options, codes, variables, fields, links."""

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import write_error_codes

from weightprint.cli import exits, main  # noqa: F401  registers the commands
from weightprint.cli.app import Device, app
from weightprint.cli.scan_command import FailOn
from weightprint.errors import CODES
from weightprint.reading import Read
from weightprint.report.files import WRITERS

ROOT = Path(__file__).resolve().parents[1]
COMMAND_LINE = (ROOT / "docs" / "command-line.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = sorted([*(ROOT / "scanner").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


def identify(path: object) -> str | None:
    return str(path.relative_to(ROOT)) if isinstance(path, Path) else None


def commands() -> Iterator[tuple[str, Any]]:
    """("weightprint refs add", command) of every command that does something."""

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(getattr(command, "commands", None), dict):
            for word, below in command.commands.items():
                yield from walk(f"{name} {word}", below)
        else:
            yield name, command

    yield from walk("weightprint", typer.main.get_command(app))


COMMANDS = dict(commands())


def options(command: Any) -> list[str]:
    return [spelling for parameter in command.params for spelling in parameter.opts if spelling.startswith("-")]


def section(title: str) -> str:
    """The text of one section of command-line.md."""
    return COMMAND_LINE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_walk_finds_the_commands() -> None:
    words = ("scan", "compare", "show", "inspect", "fingerprint", "refs add", "refs list", "refs remove", "bench")
    assert set(COMMANDS) == {f"weightprint {word}" for word in words}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name: str) -> None:
    assert re.search(rf"^\| `{name}[ `]", COMMAND_LINE, re.MULTILINE)


def test_every_documented_command_exists() -> None:
    named = {match[1].strip() for match in re.finditer(r"^\| `(weightprint(?: [a-z]+)+)", COMMAND_LINE, re.MULTILINE)}
    assert named == set(COMMANDS)


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name in COMMANDS for option in options(COMMANDS[name])]
)
def test_every_option_is_documented_where_its_command_is(name: str, option: str) -> None:
    if name == "weightprint scan":
        place = section("Options of scan")
    else:
        (place,) = (line for line in section("Options of the other commands").splitlines() if f"`{name}`" in line)
    assert re.search(rf"`{option}[ `]", place)


def test_every_documented_option_exists() -> None:
    known = {option for command in COMMANDS.values() for option in options(command)} | {"--help", "-h", "--version"}
    assert set(re.findall(r"`(--?[a-z][a-z-]*)", COMMAND_LINE)) <= known


@pytest.mark.parametrize("choice", [*Device, *Read, *FailOn])
def test_every_choice_is_documented(choice: str) -> None:
    assert str(choice) in section("Options of scan")


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_report_suffix_is_documented(suffix: str) -> None:
    assert f"`{suffix}`" in section("Options of scan")


def test_exit_codes_are_those_of_the_program() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (.*) \|$", section("Exit codes"), re.MULTILINE))
    assert {int(code) for code in rows} == set(exits.EXIT_CODES)
    for code, meaning in exits.EXIT_CODES.items():
        words = set(re.findall(r"[a-z]+", meaning)) - {"resumable"}
        assert words <= set(re.findall(r"[a-z]+", rows[str(code)])), (code, meaning)


def test_every_environment_variable_that_is_read_is_documented() -> None:
    read = set()
    for path in [*SOURCES, *(ROOT / "tools").glob("*.py")]:
        read |= set(re.findall(r"environ(?:\.get\(|\[)\"([A-Z_]+)\"", path.read_text()))
        read |= set(re.findall(r"\"([A-Z_]+)\" in os\.environ", path.read_text()))
    assert read >= {"WEIGHTPRINT_DEBUG", "WORLD_SIZE"}
    documented = set(re.findall(r"`([A-Z_]{4,})`", section("Environment")))
    assert read <= documented
    assert {"NO_COLOR", "XDG_DATA_HOME", "CUDA_VISIBLE_DEVICES"} <= documented


def test_every_document_and_field_is_documented() -> None:
    """The keys of the document builders and of the records that they write whole."""
    place = section("JSON documents")
    keys: set[str] = set()
    for name in ("report/documents.py", "fingerprint_file.py"):
        tree = ast.parse((ROOT / "scanner" / "weightprint" / name).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                keys |= {key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
        schemas = re.findall(r"\"(weightprint\.[a-z]+/1)\"", ast.unparse(tree).replace("'", '"'))
        assert all(f"`{schema}`" in place for schema in schemas)
    internal = {"moments", "energies", "weightprint", "units", "digest"}  # of the fingerprint file, not of a document
    assert len(keys) > 50
    documented = set(re.findall(r"`([a-z0-9_]+)`", place)) | {"schema"}
    assert keys - internal - documented == set()


def test_fields_of_records_are_documented() -> None:
    from dataclasses import fields

    from weightprint.compare import Family
    from weightprint.compare.families import Link
    from weightprint.data import Agreement, Bytes, ConfirmTest, MatrixStats, Screen, SourceFile, Test, UnitMatching
    from weightprint.errors import Notice

    documented = set(re.findall(r"`([a-z0-9_]+)`", section("JSON documents")))
    for record in (
        Family,
        Link,
        Agreement,
        Bytes,
        ConfirmTest,
        MatrixStats,
        Screen,
        SourceFile,
        Test,
        UnitMatching,
        Notice,
    ):
        assert {field.name for field in fields(record)} <= documented, record


def test_the_page_of_error_codes_is_what_the_tool_writes() -> None:
    assert write_error_codes.PAGE == ROOT / "docs" / "errors.md"
    assert write_error_codes.PAGE.read_text() == write_error_codes.page()


def strings(path: Path) -> Iterator[str]:
    """Every string of a module that is no docstring."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def codes_in(paths: list[Path]) -> set[str]:
    return {value for path in paths for value in strings(path) if re.fullmatch(r"E_[A-Z_]+", value)}


def test_every_code_of_the_table_is_used() -> None:
    table = ROOT / "scanner" / "weightprint" / "errors.py"
    unused = set(CODES) - codes_in([path for path in SOURCES if path != table])
    assert not unused


def test_every_code_that_is_used_is_in_the_table() -> None:
    assert codes_in(SOURCES) <= set(CODES)


def test_every_code_that_a_page_names_is_in_the_table() -> None:
    for page in PAGES:
        assert set(re.findall(r"\bE_[A-Z_]+\b", page.read_text())) <= set(CODES), page


@pytest.mark.parametrize("code", CODES)
def test_every_meaning_is_a_sentence(code: str) -> None:
    meaning = CODES[code]
    assert meaning[0].isupper() or meaning.startswith("config.json")
    assert meaning.endswith(".")
    assert "|" not in meaning


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"[a-z]+://|mailto:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


def command_lines() -> list[tuple[str, str]]:
    """(page, command line) of every weightprint call in a code block or in backticks, as it would be typed."""
    found = []
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL)
        lines = [line.split("#")[0].strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
        lines += re.findall(r"`(weightprint [^`]*)`", text)
        calls = [line.removeprefix(".venv/bin/") for line in lines]
        found += [(str(page.relative_to(ROOT)), call) for call in calls if call.startswith("weightprint ")]
    return found


def test_there_are_command_lines_to_check() -> None:
    assert len(command_lines()) >= 10
    assert {page for page, _ in command_lines()} >= {"README.md", "docs/command-line.md"}


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_every_command_line_parses(page: str, line: str) -> None:
    """Options exist and take the values given; what a page leaves open (PATH...) stands for something."""
    words = [word.removesuffix("...") for word in shlex.split(line)[1:]]
    command: Any = typer.main.get_command(app)
    while words and isinstance(getattr(command, "commands", None), dict) and not words[0].startswith("-"):
        command = command.commands[words.pop(0)]
    if words not in ([], ["--version"]):
        command.make_context("weightprint", words)


@pytest.mark.parametrize("word", ["stolen", "plagiar", "theft", "steal", "culprit", "infring"])
def test_nobody_is_accused(word: str) -> None:
    for path in [*PAGES, *SOURCES]:
        assert word not in path.read_text().lower(), path


@pytest.mark.parametrize("word", exits.SEVERITY)
def test_verdicts_are_spelled_as_in_the_contract(word: str) -> None:
    for page in (ROOT / "README.md", ROOT / "docs" / "command-line.md"):
        assert word in page.read_text()


PYTHON_FILES = sorted(
    path for folder in ("scanner", "kernels", "tests", "tools", "bench") for path in (ROOT / folder).rglob("*.py")
)
MOST_LINES, MOST_PARAMETERS = 600, 8
MANY_PARAMETERS = {"scanner/weightprint/cli/scan_command.py:scan"}
"""The command line is the contract."""


def test_no_file_is_too_long() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in PYTHON_FILES}
    assert len(lengths) > 60
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_no_function_takes_too_many_parameters() -> None:
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                arguments = node.args
                count = len([*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs])
                if count > MOST_PARAMETERS and not is_kernel(node):
                    found.add(f"{path.relative_to(ROOT)}:{node.name}")
    assert found == MANY_PARAMETERS


def is_kernel(function: ast.FunctionDef) -> bool:
    """A kernel takes pointers and sizes one by one; its language knows no records."""
    return any(word in ast.unparse(decorator) for decorator in function.decorator_list for word in ("jit", "intrinsic"))


def test_test_modules_have_names_of_their_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(set(names)) == sorted(names)


HEAVY = {"torch", "triton", "numba", "accelerate"}


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["--version"], ["scan", "--help"], ["refs", "list"]], ids=" ".join
)
def test_light_commands_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = "import sys, weightprint\n"
    if arguments:
        code += (
            f"sys.argv = ['weightprint', *{arguments!r}]\n"
            "from weightprint.cli import main\n"
            "try: main()\nexcept SystemExit as end: assert not end.code, end.code\n"
        )
    code += f"heavy = {sorted(HEAVY)!r}\nprint('heavy:', *(name for name in heavy if name in sys.modules))"
    environment = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == "heavy:"


def test_the_public_name_and_version() -> None:
    import weightprint

    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{weightprint.__version__}"' in pyproject
