"""A room imports only from floors below it (or its own): the map of the house, enforced."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cna_lens"

FLOORS = [
    {"errors", "files", "progress", "provenance"},
    {"circuit", "prompts", "statistics", "formatting", "organism", "organism.world", "plotting"},
    {"checkpoints", "layout", "models"},
    {"activations", "interventions"},
    {"discovery", "generation", "scoring"},
    {"experiments", "organism.evaluation", "organism.pair"},
    {"report", "experiments.demo_report", "cli", "__main__"},
]


def floor(module: str) -> int:
    """The floor of a module, by the longest prefix of its name that stands on one."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        for level, rooms in enumerate(FLOORS):
            if name in rooms:
                return level
    raise AssertionError(f"{module} stands on no floor: add it to FLOORS")


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cna_lens"):
            inner = (node.module or "").removeprefix("cna_lens").strip(".")
            found |= {inner} if inner else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found |= {n.removeprefix("cna_lens.") for n in names if n.startswith("cna_lens.")}
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    above = {name: floor(name) for name in imports(path) if floor(name) > floor(module)}
    assert not above, f"{module} (floor {floor(module)}) imports from above: {above}"


def test_plotting_never_touches_a_model_or_torch() -> None:
    for path in (PACKAGE / "plotting").glob("*.py"):
        assert "torch" not in path.read_text(encoding="utf-8")
