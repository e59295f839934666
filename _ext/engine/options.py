"""How notebooks are to be run, as a user has said it."""

from dataclasses import dataclass
from pathlib import Path

from .runner import Limits
from .warm import KEPT, possible


@dataclass(frozen=True)
class Options:
    """What a session is told; ``options`` makes it of what a user types."""

    store: Path
    profile: str = "sample"
    only: frozenset[str] = frozenset()  # stems; empty: all
    force: bool = False
    jobs: int = 0  # kernels at once; 0: one for each GPU or core
    warm: bool = True
    cluster: str = ""  # address of a Dask scheduler
    limits: Limits = Limits()


def options(store: Path, typed: dict[str, object]) -> Options:
    """Options of {"profile", "only", "force", "jobs", "warm", "cluster", "memory", "cell_limit",
    "limit"}. Raises ValueError in one line, with the name by which make knows the value.
    """
    if typed["profile"] not in ("sample", "full"):
        raise ValueError(f"PROFILE: {typed['profile']!r}: there are sample and full")
    return Options(
        store,
        str(typed["profile"]),
        only=frozenset(s.strip() for s in str(typed["only"]).split(",") if s.strip()),
        force=switch("FORCE", typed["force"], False),
        jobs=int(number("JOBS", typed["jobs"], whole=True)),
        warm=switch("WARM", typed["warm"], possible()) and KEPT,
        cluster=str(typed["cluster"]),
        limits=Limits(
            number("notebooks_cell_limit", typed["cell_limit"]),
            number("notebooks_limit", typed["limit"]),
            number("MEM", typed["memory"]),
        ),
    )


def number(name: str, value: object, whole: bool = False) -> float:
    """A number from 0; nothing typed is 0."""
    try:
        found = int(str(value) or 0) if whole else float(str(value) or 0)
    except ValueError:
        found = -1
    if not 0 <= found < float("inf"):
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{name}: {value!r}: {kind} from 0 is needed")
    return found


def switch(name: str, value: object, default: bool) -> bool:
    """1 or 0; nothing typed is the default."""
    if str(value) not in ("", "0", "1", "True", "False"):
        raise ValueError(f"{name}: {value!r}: 1 or 0 is needed")
    return default if value == "" else str(value) in ("1", "True")
