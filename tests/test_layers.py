"""Imports point down the layers only, and what should be cheap to import is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "embench"

# From top to bottom; what stands on one line may not import each other, but for itself.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("reporting",),
    ("comparing",),
    ("measuring", "checks"),
    ("references",),
    ("store", "models", "datasets", "metrics"),
    ("registry",),
    ("gaussian", "agreement"),
    ("types",),
)
DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}

# Reading never runs a model: these layers stand side by side, though one is listed above.
NEVER = {
    ("reporting", "measuring"),
    ("measuring", "references"),
    ("comparing", "measuring"),
    ("reporting", "models"),
    ("comparing", "models"),
    ("reporting", "datasets"),
    ("comparing", "datasets"),
}

MODULES = sorted(PACKAGE.rglob("*.py"))


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_layers(path: Path) -> set[str]:
    """Layers that a module imports, anywhere in it, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "embench":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("embench."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("embench.")}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
    return found & DEPTH.keys()


@pytest.mark.parametrize(
    "path", [path for path in MODULES if layer(path) != "__init__"], ids=lambda p: p.stem
)
def test_imports_point_down(path):
    own = layer(path)

    for other in imported_layers(path) - {own}:
        assert DEPTH[other] > DEPTH[own], f"{own} imports {other}"
        assert (own, other) not in NEVER


def test_every_module_has_a_layer():
    assert {layer(path) for path in MODULES} - {"__init__"} == DEPTH.keys() | {"suites"}


def test_only_the_command_line_prints():
    for path in MODULES:
        calls = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ]
        printed = [call for call in calls if ast.unparse(call.func) in {"print", "click.echo"}]

        assert not printed or layer(path) == "cli", path


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import embench", {"numpy", "pandas", "torch", "sklearn"}),
        ("import embench.cli", {"pandas", "torch", "sklearn", "seaborn", "rich", "pydantic"}),
        ("import embench.comparing.compare", {"torch", "sklearn", "seaborn"}),
        ("import embench.comparing.gate", {"torch", "sklearn", "seaborn"}),
        ("import embench.reporting.page", {"torch", "sklearn"}),
        ("import embench.store", {"torch", "sklearn", "pandas"}),
        ("import embench.references", {"torch", "sklearn", "pandas"}),
    ],
)
def test_imports_cost_what_is_used(statement, forbidden):
    code = (
        f"import sys; {statement}; print(*{forbidden!r} & {{m.split('.')[0] for m in sys.modules}})"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []
