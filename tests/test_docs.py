"""What the documentation shows: its code runs, its commands parse, its links lead somewhere."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib import machinery, util
from pathlib import Path

import pytest
import tyro
from jobs import run_job
from markdown_it import MarkdownIt
from markdown_it.token import Token

from ddp_gd.__main__ import COMMANDS, take_workers
from ddp_gd.commands import config

ROOT = Path(__file__).parents[1]
PAGES = [
    str(path.relative_to(ROOT))
    for path in [
        *(ROOT / f"{n}.md" for n in ("README", "SECURITY", "CONTRIBUTING", "CHANGELOG")),
        ROOT / "examples" / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
]
# Blocks that are shown and not run. One more needs `<!-- not run: why -->` before it, and a thought
# whether it can't be made to run.
NOT_RUN = 3


@dataclasses.dataclass(frozen=True)
class Block:
    """A Python block: its first line, its code, why it is not run, what it is said to print."""

    line: int
    code: str
    not_run: str
    prints: str


@cache
def tokens(page: str) -> list[Token]:
    """A page, parsed."""
    return MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text())


def blocks(page: str) -> Iterator[Block]:
    """The Python blocks of a page. A block of text right after one is what it prints."""
    for before, token, after in zip(
        [None, *tokens(page)], tokens(page), [*tokens(page)[1:], None], strict=False
    ):
        if token.type == "fence" and token.info == "python":
            comment = before.content if before is not None and before.type == "html_block" else ""
            reason = re.fullmatch(r"<!-- not run: (.+) -->\s*", comment, re.DOTALL)
            shown = after is not None and after.type == "fence" and after.info == "text"
            assert token.map is not None
            yield Block(
                line=token.map[0] + 1,
                code=token.content,
                not_run=reason[1] if reason else "",
                prints=after.content if after is not None and shown else "",
            )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[str], str]]:
    """What the blocks of each page printed, and the traceback of the one that failed."""
    folder = tmp_path_factory.mktemp("docs")
    found = {}
    # One process has one job: pages that begin theirs in bitwise mode go into another.
    for bitwise in (False, True):
        pages = {
            page: [(b.line, b.code) for b in run]
            for page in PAGES
            if (run := [b for b in blocks(page) if not b.not_run])
            and any("init(bitwise=True)" in b.code for b in run) == bitwise
        }
        if pages:
            (folder / "pages.json").write_text(json.dumps(pages))
            program = str(Path(__file__).parent / "programs" / "run_blocks.py")
            files = [str(folder / "pages.json"), str(folder / "found.json")]
            job = run_job(1, [program, *files], "python", timeout=300)
            assert job.returncode == 0, job.stderr
            found |= json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page))])
def test_python_blocks_run_and_print_what_is_shown(
    page: str, ran: dict[str, tuple[list[str], str]]
) -> None:
    """Each block runs after those before it on its page, and prints the text shown below it."""
    run = [block for block in blocks(page) if not block.not_run]
    if not run:
        return  # counted below
    printed, problem = ran[page]
    assert problem == ""
    for block, out in zip(run, printed, strict=True):
        if block.prints:
            assert _words(out) == _words(block.prints), f"{page}, line {block.line}: {out}"


def _words(text: str) -> list[object]:
    """Its words; a number equals what differs from it by 2 %, or by 1 in its last digit."""
    number = r"[-+]?[0-9]+(?:\.([0-9]+))?"
    return [
        pytest.approx(float(word), rel=0.02, abs=10 ** -len(match[1] or ""))
        if (match := re.fullmatch(number, word))
        else word
        for word in text.split()
    ]


def test_few_blocks_are_not_run() -> None:
    """What is shown and not run is counted, and each such block says why."""
    assert sum(bool(block.not_run) for page in PAGES for block in blocks(page)) == NOT_RUN


def commands(page: str) -> Iterator[list[str]]:
    """The command lines of a page, as words: in blocks of code, and in code within a text."""
    for token in tokens(page):
        if token.type == "code_block" or (token.type == "fence" and token.info != "python"):
            yield from map(_split, token.content.replace("\\\n", " ").splitlines())
        for child in token.children or []:
            if child.type == "code_inline" and re.search(r" -(?!m )", child.content):
                yield _split(child.content)  # without options it is only spoken of


def _split(line: str) -> list[str]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # not a shell's line
        return []
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if words[:1] in (["horovodrun"], ["mpirun"]) and words[1:2] == ["-np"]:
        words = words[3:]
    return words


@pytest.mark.parametrize("page", PAGES)
def test_commands_would_be_taken(page: str) -> None:
    """Each of our commands that a page shows exists, and takes the options it is given."""
    for words in commands(page):
        match words:
            case ["python", "-m", module, *arguments] if module.startswith(
                ("ddp_gd.", "benchmarks.", "tests.")
            ):
                assert find_spec(module) is not None, words
                _check(_source(module), arguments)
            case ["ddp-gd", command, *arguments] if not command.startswith("-"):
                assert command in COMMANDS, words
                if command in ("train", "predict", "contrast"):
                    _, arguments = take_workers(arguments)
                _check(_source(f"ddp_gd.{command}"), arguments)
            case ["bash" | "python", script, *arguments] if script.startswith(
                ("launch/", "examples/")
            ):
                assert (ROOT / script).is_file(), words
                _check(ROOT / script, arguments)


def _check(program: Path, arguments: list[str]) -> None:
    if program.name == "train.sh":  # which hands on all but -np N
        program = _source("ddp_gd.train")
        _, arguments = take_workers(arguments)
    if _is_command(program) and not {"...", "--help"} & set(arguments):
        tyro.cli(_config(program), args=arguments)
    else:
        options = {word.split("=")[0] for word in arguments if re.match(r"--?[a-z]", word)}
        assert options - _known(program) == set(), f"{program.name} {arguments}"


def find_spec(module: str) -> machinery.ModuleSpec | None:
    """Find a module's file, whatever stands under its name once it was imported."""
    package, _, _ = module.rpartition(".")
    parent = util.find_spec(package)
    places = parent.submodule_search_locations if parent is not None else None
    return machinery.PathFinder.find_spec(module, places)


def _source(module: str) -> Path:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin)
    return path.with_name("__main__.py") if path.name == "__init__.py" else path


def _is_command(program: Path) -> bool:
    return "cli.start(" in program.read_text()


def _config(program: Path) -> type:
    """The dataclass of a command's options."""
    (name,) = re.findall(r"cli\.start\((\w+), ", program.read_text())
    return getattr(config, name)


def _known(program: Path, *asked: Path) -> set[str]:
    """The options that a program's text names, and those of the modules it hands arguments to."""
    if _is_command(program):
        names = [field.name.replace("_", "-") for field in dataclasses.fields(_config(program))]
        return {f"--{prefix}{name}" for name in ["help", *names] for prefix in ("", "no-")}
    text = program.read_text()
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text))
    handed = r"(?:help_with|python -m) ((?:ddp_gd|benchmarks)\.\w+)|from ([\w.]+) import main"
    for source in {_source(started or imported) for started, imported in re.findall(handed, text)}:
        if source not in (program, *asked):
            known |= _known(source, program, *asked)
    return known


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Each file and heading that a page links to is there, and each picture."""
    for token in tokens(page):
        for child in token.children or []:
            # A reference that is defined nowhere stays text.
            assert child.type != "text" or not re.search(r"\]\[\w", child.content), child.content
            target = child.attrGet("href" if child.type == "link_open" else "src")
            if child.type in ("link_open", "image") and isinstance(target, str):
                if re.match(r"https?://", target):
                    continue
                name, _, heading = target.partition("#")
                path = (ROOT / page).parent / name if name else ROOT / page
                assert path.exists(), f"{page} links to {target}"
                if heading:
                    assert heading in _headings(str(path.resolve().relative_to(ROOT))), target


@cache
def _headings(page: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    texts = [
        text.content
        for token, text in zip(tokens(page), tokens(page)[1:], strict=False)
        if token.type == "heading_open"
    ]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def test_every_page_is_in_the_index() -> None:
    """docs/README.md links to each page of docs/."""
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"]({page})" not in index} == set()


@pytest.mark.parametrize(
    ("program", "arguments", "error"),
    [
        ("launch/cpu_mpi.sh", ["--restart", "3"], AssertionError),
        ("launch/train.sh", ["-np", "2", "--batch-size", "fulll"], SystemExit),
        ("ddp_gd/verify.py", ["-np", "1", "2", "--epoch", "5"], AssertionError),
    ],
)
def test_a_wrong_command_is_found(
    program: str, arguments: list[str], error: type[BaseException]
) -> None:
    """An option that doesn't exist, or a value that it doesn't take, doesn't pass."""
    with pytest.raises(error):
        _check(ROOT / program, arguments)
