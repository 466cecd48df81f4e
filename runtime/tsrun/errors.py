"""What the runtime says when something is wrong: one line of what, where and how to mend, and the exit code that goes with it."""

from __future__ import annotations


class TsrunError(Exception):
    """The root of everything a user may meet. `where` may be empty, `mend` too; the text is always one line."""

    exit_code: int = 1

    def __init__(self, where: str, what: str, mend: str = "") -> None:
        line = (f"{where}: " if where else "") + what + (f"; {mend}" if mend else "")
        super().__init__(" ".join(line.split()))
        self.where, self.what, self.mend = where, what, mend

    @property
    def line(self) -> str:
        return str(self)


class ArtifactError(TsrunError):
    """An artifact that is damaged, foreign, or made for another format or mesh."""


class RequestError(TsrunError):
    """A request that can not be served as asked."""


class InputError(TsrunError):
    """A file of the user's that can not be read, or is not what it is taken for."""


class CompilerError(TsrunError):
    """`tsc compile` ended with an error; it has printed the reason itself."""


class CacheError(TsrunError):
    """An entry of the compile cache that is not there or not whole."""


class UsageError(TsrunError):
    """Options that contradict each other."""

    exit_code = 2


class MachineError(TsrunError):
    """The machine lacks something: a package, memory, a process that stays alive."""

    exit_code = 3


class RankError(MachineError):
    """A rank did not start, or ended while the engine needed it."""
