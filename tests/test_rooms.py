"""The house: a room imports to its left alone, and no module imports, by whatever way, one that imports it."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From left to right. The longest name that a module begins with is its place; rooms of one place are strangers.
PLACES = (
    ("dragsa.files", "dragsa.config"),
    ("dragsa.model.blocks",),
    ("dragsa.model.sites",),
    ("dragsa.kernels", "dragsa.layouts"),
    ("dragsa.stock",),
    ("dragsa.hooks",),
    ("dragsa.model",),
    ("dragsa.schedule",),
    ("dragsa.ddim",),
    ("dragsa.pictures", "dragsa.loading"),
    ("dragsa.checks",),
    ("dragsa.motion",),
    ("dragsa.tracking",),
    ("dragsa.checks.outcomes",),
    ("dragsa.passes",),
    ("dragsa.drag",),
    ("dragsa.methods",),
    ("dragsa.source_kv",),
    ("dragsa.editing",),
    ("dragsa.looking",),
    ("dragsa.speed", "dragsa.evaluation"),
    ("dragsa.page", "dragsa.cli"),
    ("dragsa",),  # its __init__ and __main__, which name everything
)
# What stands at one place and is met all the same: a room on the left of its neighbour there.
NEIGHBOURS = {("dragsa.loading", "dragsa.pictures"), ("dragsa.cli", "dragsa.page")}
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((ROOT / "dragsa").rglob("*.py"))
}


def room(module: str) -> str:
    names = [name for place in PLACES for name in place if module == name or module.startswith(f"{name}.")]
    return max(names, key=len)


def place(module: str) -> int:
    return next(n for n, names in enumerate(PLACES) if room(module) in names)


def resolved(name: str) -> str | None:
    """The module of the package that a dotted name is, or is a name of."""
    while name not in MODULES:
        if "." not in name:
            return None
        name = name.rpartition(".")[0]
    return name


def imports(module: str, whole: bool = True) -> set[str]:
    """The package's modules that one imports; with `whole` those within functions and by string, too."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree)) if whole else list(at_the_top(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif whole and isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value} if node.value in MODULES and node.value != "dragsa" else set()
    return {name for name in map(resolved, found) if name is not None and name != module and name != "dragsa"}


def at_the_top(tree: ast.Module) -> list[ast.AST]:
    """The nodes that run when the module is imported: no function's, none for type checking alone."""
    found: list[ast.AST] = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        found.append(node)
        waiting += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_to_its_left_alone(module: str) -> None:
    for other in imports(module):
        if room(other) == room(module) or (room(module), room(other)) in NEIGHBOURS:
            continue
        assert place(other) < place(module), f"{module} imports {other}, which stands to its right"


def test_no_circle() -> None:
    graph = {module: imports(module) for module in MODULES if module != "dragsa"}
    # A room's __init__ gathers names of its own modules, which may name the room: that is no circle between modules.
    for module in graph:
        if MODULES[module].name == "__init__.py":
            graph[module] = set()
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_the_house_keeps_its_measures() -> None:
    assert len(list((ROOT / "dragsa").glob("*.py"))) <= 12
    long = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in MODULES.items()}
    assert not {name: lines for name, lines in long.items() if lines > 400}


def test_a_script_imports_no_script() -> None:
    scripts = {file.stem for file in (ROOT / "scripts").rglob("*.py")}
    for file in (ROOT / "scripts").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not scripts & {name.removeprefix("gallery.") for name in names}, f"{file.name} imports {names}"


def test_a_method_of_the_gallery_is_short() -> None:
    files = list((ROOT / "scripts" / "gallery").glob("*.py"))
    assert len(files) == 14
    assert not [file.name for file in files if len(file.read_text(encoding="utf-8").splitlines()) > 60]
