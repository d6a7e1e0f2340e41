"""The rules of the house that can be read off the source: which way imports run, and how long things are."""

import ast
from pathlib import Path

import pytest

import vqtool

PACKAGE = Path(vqtool.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# From top to bottom. A module may import from its own package and from those below.
PACKAGES = [
    "__main__",
    "cli",
    "training",
    "inspection",
    "inference",
    "runs",
    "metrics",
    "config",
    "models",
    "quantizers",
    "search",
    "data",
    "runtime",
    "errors",
]


def layer(module: str) -> int:
    return PACKAGES.index(module.split(".")[1])


def imports(path: Path) -> list[str]:
    """The modules of vqtool that a file imports, anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(node.module or "")
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.startswith("vqtool.")]


def module_name(path: Path) -> str:
    return ".".join(("vqtool", *path.relative_to(PACKAGE).with_suffix("").parts))


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.parent != PACKAGE or path.stem != "__init__"], ids=str
)
def test_imports_run_down(path):
    module = module_name(path)
    upward = [name for name in imports(path) if layer(name) < layer(module)]
    assert not upward


def test_there_is_no_import_circle():
    names = {module_name(path).removesuffix(".__init__"): path for path in MODULES}
    graph = {name: {other for other in imports(path) if other in names} for name, path in names.items()}
    while graph:
        leaves = {name for name, below in graph.items() if not below & graph.keys() - {name}}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: below for name, below in graph.items() if name not in leaves}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert text.count("\n") <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_public_functions_say_what_they_do(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
