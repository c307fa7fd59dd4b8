"""Imports go one way: the layer table of docs/architecture.md, held against the source."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from sys import stdlib_module_names

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A module belongs to its longest prefix here. A layer imports from itself and from layers before it.
LAYERS = (
    ("mixins.sat_compat",),
    ("mixins",),
    (
        "sat_models.text",
        "sat_models.errors",
        "sat_models.digests",
        "sat_models.files",
        "sat_models.figures",
        "sat_models.runtime",
        "sat_models.c_library",
        "sat_models.config",
    ),
    ("sat_models.registry", "sat_models.model_spec", "sat_models.processing", "sat_models.vision"),
    ("sat_models.models",),
    ("sat_models.checkpoint", "sat_models.generation", "sat_models.sampling"),
    ("sat_models.zoo", "sat_models.flags"),
    (
        "sat_models.training",
        "sat_models.evaluation",
        "sat_models.shapes",
        "sat_models.bench",
        "sat_models.serving",
        "sat_models.commands",
    ),
    ("scripts",),
)
LAYER_OF = {prefix: number for number, prefixes in enumerate(LAYERS) for prefix in prefixes}
OURS = ("mixins", "sat_models", "scripts")
ONLY_WHERE_USED = (
    "bitsandbytes", "datasets", "deepspeed", "diffusers", "gradio", "llguidance", "spacy", "transformers", "triton",
    "xformers",
)  # fmt: skip
EVALUATION_OF_TRAINING = ("sat_models.evaluation", "sat_models.training")
MODEL_CODE = ("mixins", "sat_models.vision", "sat_models.models")
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 320, 60
NOT_FOR_MODEL_CODE = ("argparse", "fastapi", "http", "json", "pathlib", "requests", "shutil", "socket", "urllib")


@dataclass(frozen=True)
class Import:
    """One import of one module.

    Attributes:
        module, line: where it stands.
        target: dotted name; for `from a import b`, `a.b` where that is a module of ours.
        guarded: it stands in a function, in a `try` that expects ImportError, or under TYPE_CHECKING.
        in_function: it stands in a function.
        for_types: it stands under TYPE_CHECKING, so that no program runs it.
    """

    module: str
    line: int
    target: str
    guarded: bool
    in_function: bool
    for_types: bool = False

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {module_name(path): path for top in OURS for path in sorted((ROOT / top).rglob("*.py"))}


def imports_in(module: str, source: str, *, is_package: bool = False) -> Iterator[Import]:
    """Every import of a module, wherever it stands."""

    def visit(node: ast.AST, guarded: bool, in_function: bool, for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target in _targets(node, module, is_package):
                yield Import(module, node.lineno, target, guarded, in_function, for_types)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            guarded = in_function = True
        elif isinstance(node, ast.Try):
            caught = {n.id for handler in node.handlers for n in ast.walk(handler) if isinstance(n, ast.Name)}
            guarded = guarded or bool(caught & {"ImportError", "ModuleNotFoundError"})
        elif isinstance(node, ast.If):
            for_types = for_types or "TYPE_CHECKING" in ast.unparse(node.test)
            guarded = guarded or for_types
        for child in ast.iter_child_nodes(node):
            yield from visit(child, guarded, in_function, for_types)

    yield from visit(ast.parse(source), False, False, False)


def _targets(node: ast.Import | ast.ImportFrom, module: str, is_package: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        parents = module.split(".")[: len(module.split(".")) - node.level + is_package]
        base = ".".join([*parents, base]).rstrip(".")
    for alias in node.names:
        inner = f"{base}.{alias.name}"
        yield inner if inner in SOURCES else base


IMPORTS = [
    found
    for module, path in SOURCES.items()
    for found in imports_in(module, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py")
]


def package_of(module: str) -> str | None:
    """Its line in the table; None for the bare package `sat_models`, which holds nothing."""
    parts = module.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in LAYER_OF), None)


def layer_of(module: str) -> int | None:
    """Number of the layer; None for the bare package `sat_models`."""
    return LAYER_OF.get(package_of(module))


def circle_in(edges: Iterable[tuple[str, str]]) -> list[str]:
    """Nodes that lead to themselves, in order, with the first once more at the end; empty if there are none."""
    leads_to: dict[str, set[str]] = {}
    for start, end in edges:
        leads_to.setdefault(start, set()).add(end)
    done: set[str] = set()

    def walk(node: str, trail: list[str]) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return []
        found = next(filter(None, (walk(after, [*trail, node]) for after in sorted(leads_to.get(node, ())))), [])
        done.add(node)
        return found

    return next(filter(None, (walk(node, []) for node in sorted(leads_to))), [])


def top_level(name: str) -> str:
    return name.partition(".")[0]


def listed(wrong: list[Import]) -> str:
    return "\n".join(map(str, wrong))


def test_the_table_is_that_of_the_documentation() -> None:
    lines = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split("|")[1] for line in lines if line.startswith("| ") and line[2].isdigit()]
    assert [int(row.split()[0]) for row in rows] == list(range(len(LAYERS)))
    for row, prefixes in zip(rows, LAYERS, strict=True):
        assert [prefix for prefix in prefixes if prefix.rpartition(".")[2] not in row] == []


def test_every_module_has_a_layer() -> None:
    homeless = [name for name in SOURCES if layer_of(name) is None]
    assert homeless == ["sat_models"]
    nodes = ast.parse((ROOT / "sat_models" / "__init__.py").read_text()).body
    assert [type(node) for node in nodes] == [ast.Expr, ast.Assign], "what it is and __version__, nothing imported"


def test_a_layer_imports_only_from_itself_and_those_before_it() -> None:
    ours = [i for i in IMPORTS if top_level(i.target) in OURS and i.target != "sat_models"]
    assert len(ours) > 100, "the walk found too little to be true"
    wrong = [i for i in ours if layer_of(i.module) < layer_of(i.target)]
    assert not wrong, listed(wrong)


def test_no_circle_between_files() -> None:
    """Imports inside functions count, too: who needs them to hide a circle has drawn the rooms wrong."""
    run = [i for i in IMPORTS if i.target in SOURCES and not i.for_types]
    assert circle_in((i.module, i.target) for i in run) == []


def test_no_circle_between_packages_of_a_layer() -> None:
    run = [i for i in IMPORTS if top_level(i.target) in OURS and not i.for_types]
    pairs = {(package_of(i.module), package_of(i.target)) for i in run if i.target != "sat_models"}
    assert circle_in((one, other) for one, other in pairs if one != other) == []


def test_training_may_import_evaluation_never_the_reverse() -> None:
    wrong = [i for i in IMPORTS if (package_of(i.module), package_of(i.target)) == EVALUATION_OF_TRAINING]
    assert not wrong, listed(wrong)


def test_circles_are_found() -> None:
    assert circle_in([("a", "b"), ("b", "c"), ("a", "c")]) == []
    assert circle_in([("a", "b"), ("b", "c"), ("c", "d"), ("d", "b")]) == ["b", "c", "d", "b"]


def test_mixins_import_torch_and_each_other_only() -> None:
    extra = {"mixins.sat_compat": {"sat"}, "mixins.rotary_triton": {"triton"}}
    allowed = {"torch", "mixins", *stdlib_module_names}
    of_mixins = [i for i in IMPORTS if top_level(i.module) == "mixins"]
    wrong = [i for i in of_mixins if top_level(i.target) not in allowed | extra.get(i.module, set())]
    assert of_mixins and not wrong, listed(wrong)


def test_one_module_imports_sat() -> None:
    assert {i.module for i in IMPORTS if top_level(i.target) == "sat"} == {"mixins.sat_compat"}


def test_nobody_imports_scripts() -> None:
    wrong = [i for i in IMPORTS if top_level(i.target) == "scripts"]
    assert not wrong, listed(wrong)


def test_deepspeed_is_imported_in_functions_of_training_only() -> None:
    found = [i for i in IMPORTS if top_level(i.target) == "deepspeed"]
    wrong = [i for i in found if not (i.in_function and i.module.startswith("sat_models.training."))]
    assert found and not wrong, listed(wrong)


@pytest.mark.parametrize("package", ONLY_WHERE_USED)
def test_heavy_and_optional_packages_are_imported_where_used(package: str) -> None:
    wrong = [i for i in IMPORTS if top_level(i.target) == package and not i.guarded]
    assert not wrong, listed(wrong)


def test_model_code_knows_nothing_of_files_arguments_and_http() -> None:
    of_models = [i for i in IMPORTS if i.module.startswith(MODEL_CODE) and i.module != "mixins.sat_compat"]
    wrong = [i for i in of_models if top_level(i.target) in NOT_FOR_MODEL_CODE]
    assert of_models and not wrong, listed(wrong)


def test_nothing_says_cuda_call() -> None:
    """The device comes from the tensor or from the configuration."""
    wrong = [
        f"{module}:{node.lineno}"
        for module, path in SOURCES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda"
    ]
    assert wrong == []


def too_long() -> Iterator[str]:
    """Files and functions that nobody reads in one go."""
    for module, path in SOURCES.items():
        source = path.read_text(encoding="utf-8")
        if len(source.splitlines()) > MOST_LINES_OF_A_FILE:
            yield module
        for node in ast.walk(ast.parse(source)):
            lines = getattr(node, "end_lineno", 0) - getattr(node, "lineno", 0) + 1
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines > MOST_LINES_OF_A_FUNCTION:
                yield f"{module}.{node.name}"


def test_files_and_functions_are_short() -> None:
    assert list(too_long()) == []


def test_the_walk_sees_every_form() -> None:
    source = """
import gradio
from sat_models import zoo
from . import sibling
from .. import registry
try:
    import triton
except ImportError:
    triton = None
try:
    import spacy
finally:
    pass
if TYPE_CHECKING:
    import xformers
class C:
    import bitsandbytes
    def f(self):
        from sat_models.serving.cli import main
"""
    found = {i.target: (i.guarded, i.in_function) for i in imports_in("sat_models.models.example", source)}
    assert found == {
        "gradio": (False, False),
        "sat_models.zoo": (False, False),
        "sat_models.models": (False, False),
        "sat_models.registry": (False, False),
        "triton": (True, False),
        "spacy": (False, False),
        "xformers": (True, False),
        "bitsandbytes": (False, False),
        "sat_models.serving.cli": (True, True),
    }
    assert layer_of("sat_models.models.example") < layer_of("sat_models.serving.cli")
