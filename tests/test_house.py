"""Rules for the source: direction of imports, length of files and functions, docstrings."""

import ast
from pathlib import Path

import pytest

import vqtool

PACKAGE = Path(vqtool.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# From top to bottom. A module may import from its own package and from packages below it.
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
    """Return the modules of vqtool that a file imports, at its top or inside functions."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return [name for name in names if name.startswith("vqtool.")]


def module_name(path: Path) -> str:
    return ".".join(("vqtool", *path.relative_to(PACKAGE).with_suffix("").parts))


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.parent != PACKAGE or path.stem != "__init__"], ids=str
)
def test_imports_point_downwards(path):
    module = module_name(path)
    upward = [name for name in imports(path) if layer(name) < layer(module)]
    assert not upward


def test_imports_have_no_cycle():
    names = {module_name(path).removesuffix(".__init__"): path for path in MODULES}
    graph = {name: {other for other in imports(path) if other in names} for name, path in names.items()}
    while graph:
        leaves = {name for name, below in graph.items() if not below & graph.keys() - {name}}
        assert leaves, f"import cycle among {sorted(graph)}"
        graph = {name: below for name, below in graph.items() if name not in leaves}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert text.count("\n") <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_public_functions_and_classes_have_docstrings(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
