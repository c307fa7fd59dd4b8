"""Entries of families: what they claim is there, nothing is claimed twice, and nobody else knows a family by name."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sat_models.models import families
from sat_models.models.common.family import Family
from sat_models.models.common.groups import ParameterGroup
from sat_models.models.families import family_of, forms, named_groups, register
from sat_models.processing.prompts import PromptStyle

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {path.parent.name for path in (ROOT / "sat_models/models").glob("*/family.py")} - {"common"}
BUILT_ON = {
    "cogagent": {"cogvlm"},
    "cogview_tiny": {"cogview2"},
    "cogvlm2": {"cogvlm"},
    "glm4v": {"cogvlm", "cogvlm2"},
}
"""Families that extend another."""
KNOWS = {
    "sat_models.models.families": FOLDERS,  # the list
    "sat_models.checkpoint.minigpt4": {"minigpt4"},  # released in several places
    "sat_models.serving.web_texts": {"cogagent"},  # an example question of the page
    "sat_models.shapes": {"cogvlm", "cogview_tiny"},  # the bundled models
    "sat_models.commands.train_tiny": {"cogvlm"},
    "sat_models.commands.train_tiny_painter": {"cogview_tiny"},
    "sat_models.bench": {"cogvlm"},  # measured beside SAT's own CogVLM
}
"""Modules and packages that may know one."""


@pytest.fixture(autouse=True)
def own_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    yield
    named_groups.cache_clear()


def test_every_folder_has_an_entry_of_its_name() -> None:
    assert {family.name for family in families.families()} == FOLDERS


def test_an_entry_names_its_classes() -> None:
    for family in families.families():
        classes = {cls.__name__: cls for cls in family.classes()}
        assert set(classes) == set(family.models) and len(family.models) == len(set(family.models))
        for name, cls in classes.items():
            assert family_of(name) is family and family.model_class(name) is cls
            if cls.config_class.TASK == "dialogue":
                assert cls.config_class.DEFAULT_VERSION in family.styles
            else:
                assert not family.styles


def test_a_form_belongs_to_a_class_of_its_family() -> None:
    for family in families.families():
        for form in family.forms():
            assert form.model_class in family.models and form in forms()
            assert set(form.versions.values()) <= set(family.styles)


def made_up(**what: Any) -> Family:
    return replace(Family(name="made-up", models=("MadeUpModel",), classes=tuple, styles={}), **what)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"name": "llava"}, "the family 'llava' is registered twice: by llava and by llava"),
        ({"models": ("LLaVAModel",)}, "the model class 'LLaVAModel' is registered twice: by llava and by made-up"),
        (
            {"styles": {"chat": PromptStyle("Q", "A", None, "", "another")}},
            "the prompt style 'chat' is registered twice: by cogvlm and by made-up",
        ),
        (
            {"groups": {"vit": ParameterGroup(("x.*",), vision=False)}},
            "cogvlm and made-up differ in what the parameter group 'vit' is",
        ),
    ],
)
def test_what_is_there_already_is_refused_with_both_owners(what: dict[str, Any], message: str) -> None:
    before = families.families()
    with pytest.raises(ValueError, match=f"^{message}$"):
        register(made_up(**what))
    assert families.families() == before


def test_a_form_that_is_there_already_is_refused_with_both_owners() -> None:
    taken = next(form for form in forms() if form.model_class == "CogVLMModel")
    register(made_up(forms=lambda: (taken,)))
    with pytest.raises(ValueError, match="CogVLMForCausalLM is registered twice: by cogvlm and by made-up"):
        forms()


def test_a_group_gets_the_patterns_of_all_families() -> None:
    register(made_up(groups={"vit": ParameterGroup(("mixins.made.up.*",), vision=True)}))
    assert named_groups()["vit"].patterns[-1] == "mixins.made.up.*"
    assert (
        named_groups()["vit"].patterns[:-1]
        == tuple(
            dict.fromkeys(p for f in families.families() for p in f.groups.get("vit", ParameterGroup(())).patterns)
        )[:-1]
    )


def test_importing_the_entries_is_light() -> None:
    code = "import sys; import sat_models.models.families; print([m for m in ('torch', 'sat') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert said.stdout.strip() == "[]"


def imported_families(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[:2] == ["sat_models", "models"] and len(parts) > 2 and parts[2] in FOLDERS:
                found.add(parts[2])
    return found


def test_nobody_else_knows_a_family() -> None:
    """A family is imported by its own folder, the list, and those named above."""
    strangers: dict[str, set[str]] = {}
    for path in [p for top in ("mixins", "sat_models", "scripts") for p in (ROOT / top).rglob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        own = parts[2] if parts[:2] == ("sat_models", "models") and parts[2] in FOLDERS else None
        allowed = (
            {own, *BUILT_ON.get(own, ())} if own else KNOWS.get(".".join(parts), KNOWS.get(".".join(parts[:2]), set()))
        )
        if more := imported_families(path) - allowed:
            strangers[".".join(parts)] = more
    assert strangers == {}
