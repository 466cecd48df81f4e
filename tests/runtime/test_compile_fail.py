"""What must not compile does not, and the compiler says why: the programs of runtime/csrc/tests/compile_fail.

A program says in comments why it is illegal (`// expect: TEXT`, or `// expect gcc: TEXT` and `// expect clang: TEXT`). Without ILLEGAL it
compiles, so that it does not fail for another reason. `// patch FILE: OLD => NEW` is made in the sources that the illegal part sees;
`// compiler: clang` is for what only its -Wconsumed sees.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "runtime" / "csrc"
OWN_TESTS = sorted((SOURCES / "tests").glob("*.cpp"))
MAX_LINES = 40  # before the reason

Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Compiler:
    command: str
    is_clang: bool

    def run(self, *arguments: str | Path) -> Done:
        flags = ["-std=c++20", "-Wall", "-Wextra", "-Werror", *(["-Wconsumed"] if self.is_clang else [])]
        environment = {**os.environ, "LC_ALL": "C"}  # plain quotes
        return subprocess.run([self.command, *flags, *arguments], env=environment, capture_output=True, text=True, check=False)


@cache
def compiler(command: str) -> Compiler | None:
    """The compiler of that name, where it is one of C++20."""
    if shutil.which(command) is None:
        return None
    macros = subprocess.run([command, "-std=c++20", "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True, check=False)
    return Compiler(command, "__clang__" in macros.stdout) if "__cpp_concepts" in macros.stdout else None


def usual_compiler() -> Compiler | None:
    """The one that CMake would take."""
    named = os.environ.get("CXX")
    return next((found for name in ([named] if named else ["c++", "g++", "clang++"]) if (found := compiler(name))), None)


@dataclass(frozen=True)
class Program:
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def notes(self, key: str) -> list[str]:
        return re.findall(rf"^// {key}: (.*)$", self.text, re.MULTILINE)

    def expected(self, using: Compiler) -> list[str]:
        return self.notes("expect") + self.notes("expect clang" if using.is_clang else "expect gcc")

    @property
    def only(self) -> str | None:
        """The one compiler that sees it: clang with -Wconsumed, or gcc where clang has a bug."""
        return next(iter(self.notes("compiler")), None)

    @cached_property
    def patches(self) -> list[tuple[str, str, str]]:
        return re.findall(r"^// patch (\S+): (.*) =>(?: (.*))?$", self.text, re.MULTILINE)


PROGRAMS = [Program(path) for path in sorted((SOURCES / "tests" / "compile_fail").glob("*.cpp"))]


class Compilations:
    """Compilations of programs against one copy of the sources, whose headers are precompiled once; two at a time."""

    def __init__(self, folder: Path) -> None:
        self.sources = self.copy(folder / "sources", SOURCES)
        self.folder = folder
        self.pool = ThreadPoolExecutor(2)
        self.precompiled: dict[Compiler, Future[list[str]]] = {}
        self.legal: dict[Compiler, Future[str]] = {}
        self.illegal: dict[tuple[Compiler, Program], Future[Done]] = {}

    @staticmethod
    def copy(folder: Path, sources: Path) -> Path:
        folder.mkdir()
        for source in (*sources.glob("*.hpp"), *sources.glob("*.cpp")):
            shutil.copy(source, folder)
        return folder

    def prepare(self, using: Compiler) -> None:
        if using not in self.precompiled:
            self.precompiled[using] = self.pool.submit(self.precompile, using)
            self.legal[using] = self.pool.submit(self.compile_legal, using)

    def start(self, using: Compiler, program: Program) -> None:
        self.prepare(using)
        if (using, program) not in self.illegal:
            self.illegal[using, program] = self.pool.submit(self.compile_illegal, using, program)

    def precompile(self, using: Compiler) -> list[str]:
        """The flags that include every header."""
        header = self.folder / f"{using.command.replace('/', '_')}.hpp"
        header.write_text('#include "scheduler.hpp"\n', encoding="utf-8")
        target = header.with_suffix(".hpp.pch" if using.is_clang else ".hpp.gch")
        done = using.run("-I", self.sources, "-x", "c++-header", header, "-o", target)
        assert done.returncode == 0, done.stderr
        return ["-include-pch", str(target)] if using.is_clang else ["-include", str(header)]

    def compile_legal(self, using: Compiler) -> str:
        """What the compiler says of the legal parts, all at once."""
        together = self.folder / f"{using.command.replace('/', '_')}_legal.cpp"
        spaces = [f'namespace {p.path.stem} {{\n#include "{p.path}"\n}}\n' for p in PROGRAMS if not p.patches]
        spaces.append('#include "transition_check.cpp"\n')
        together.write_text("".join(spaces), encoding="utf-8")
        return using.run(*self.precompiled[using].result(), "-fsyntax-only", "-I", self.sources, together).stderr

    def compile_illegal(self, using: Compiler, program: Program) -> Done:
        sources, precompiled = self.sources, self.precompiled[using].result()
        if program.patches:
            sources, precompiled = self.copy(self.folder / f"{using.command.replace('/', '_')}_{program.path.stem}", self.sources), []
        for name, old, new in program.patches:
            text = (sources / name).read_text(encoding="utf-8")
            assert text.count(old) == 1, f"{program.path.name} patches `{old}`, which is in {name} {text.count(old)} times"
            (sources / name).write_text(text.replace(old, new), encoding="utf-8")
        return using.run(*precompiled, "-fsyntax-only", "-DILLEGAL", "-I", sources, program.path)


@pytest.fixture(scope="session")
def compilations(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compilations]:
    started = Compilations(tmp_path_factory.mktemp("compile_fail"))
    for item in request.session.items:  # all that will be asked for, so that two run at a time
        asked = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        program = asked.get("program")
        if isinstance(program, Program) and (using := compiler_for(program, bool(asked.get("other")))) is not None:
            started.start(using, program)
    yield started
    started.pool.shutdown(cancel_futures=True)
    shutil.rmtree(started.folder)  # precompiled headers are large


def compiler_for(program: Program, other: bool = False) -> Compiler | None:
    usual = usual_compiler()
    if other:
        return None if usual is None else compiler("g++" if usual.is_clang else "clang++")
    if program.only is None or (usual is not None and usual.is_clang == (program.only == "clang")):
        return usual
    return compiler("clang++" if program.only == "clang" else "g++")


def check(program: Program, using: Compiler, compilations: Compilations) -> None:
    expected = program.expected(using)
    assert expected, "the program does not say what it expects"
    legal = compilations.legal[using].result()
    assert f"{program.path.name}:" not in legal, f"the legal part does not compile:\n{legal}"
    illegal = compilations.illegal[using, program].result()
    assert illegal.returncode != 0, "the illegal part compiles"
    for text in expected:
        line = next((number for number, line in enumerate(illegal.stderr.splitlines()) if text in line), None)
        assert line is not None, f"the compiler does not say `{text}`:\n{illegal.stderr}"
        assert line < MAX_LINES, f"the reason comes only in line {line}:\n{illegal.stderr}"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.path.stem)
def test_an_illegal_program_is_refused_with_its_reason(program: Program, compilations: Compilations) -> None:
    using = compiler_for(program)
    if using is None:
        pytest.skip(f"needs {program.only}, which alone sees this" if program.only else "needs a compiler of C++20")
    check(program, using, compilations)


@pytest.mark.slow
@pytest.mark.parametrize("other", [True], ids=["other"])
@pytest.mark.parametrize("program", [p for p in PROGRAMS if not p.only], ids=lambda program: program.path.stem)
def test_the_other_compiler_says_the_reason_too(other: bool, program: Program, compilations: Compilations) -> None:
    """clang where the usual one is gcc, and the other way round."""
    using = compiler_for(program, other)
    if using is None:
        pytest.skip("needs both compilers of C++20")
    check(program, using, compilations)


def test_the_legal_parts_compile(compilations: Compilations) -> None:
    using = usual_compiler()
    if using is None:
        pytest.skip("needs a compiler of C++20")
    compilations.prepare(using)
    assert compilations.legal[using].result() == ""


@pytest.mark.slow
def test_no_source_uses_what_it_has_moved(compilations: Compilations) -> None:
    clang = compiler("clang++")
    if clang is None:
        pytest.skip("needs clang++: only its -Wconsumed sees this")
    compilations.prepare(clang)
    flags = [*compilations.precompiled[clang].result(), "-fsyntax-only"]
    sources = sorted(path for path in compilations.sources.glob("*.cpp") if path.name != "module.cpp")  # which needs pybind11
    checked = [*sources, *OWN_TESTS]
    folders = ["-I", str(compilations.sources), "-I", str(SOURCES / "tests")]
    results = list(compilations.pool.map(lambda path: clang.run(*flags, *folders, path), checked))
    assert [done.stderr for done in results if done.returncode != 0] == []
