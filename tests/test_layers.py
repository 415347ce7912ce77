"""Imports run strictly downward, and files stay readable in one sitting."""

import ast
from pathlib import Path

import contrast

PACKAGE = Path(contrast.__file__).parent

# from the ground up; what stands on one line may import only what stands on lines above it, and itself
FLOORS = [
    ["errors", "rng"],
    ["atomic", "config", "distributed", "grad_cache", "network", "scaling"],
    ["candidates"],
    ["losses"],
    ["heads", "samplers", "encoders", "data", "views", "optim"],
    ["negatives", "keys", "functional"],
    ["evaluation"],
    ["module", "deploy"],
    ["words"],
    ["run"],
    ["report"],
    ["training"],
    ["cli"],
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}


def imported(path: Path) -> set[str]:
    """First component below `contrast` of every import in the file; relative imports are not used."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "contrast":
                names = [f"contrast.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("contrast.")}
    return found


def modules() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def test_every_part_has_a_floor() -> None:
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()}
    assert parts == set(LEVEL)


def test_imports_run_downward() -> None:
    wrong = []
    for path in modules():
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        wrong += [f"{own} -> {name} in {path.name}" for name in imported(path) - {own} if LEVEL[name] >= LEVEL[own]]
    assert not wrong


def test_few_files_are_loose() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 12


def test_files_are_short() -> None:
    long = {str(p.relative_to(PACKAGE)): n for p in modules() if (n := len(p.read_text().splitlines())) > 350}
    assert not long
