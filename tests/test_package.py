"""What setup.py promises: dependencies in step, configs that parse, and a wheel that works away from the checkout."""

from __future__ import annotations

import ast
import importlib
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sat_models import registry
from sat_models.config import read_json
from sat_models.errors import MissingPackageError
from sat_models.generation.steps import native as token_kernels
from sat_models.models.build import make_config
from sat_models.models.common import attention_kernels, quantised_kernels
from sat_models.models.families import model_class

ROOT = Path(__file__).resolve().parents[1]
COMPILED = {
    "sat_models/generation/steps/_native": token_kernels,
    "sat_models/models/common/_attention_kernels": attention_kernels,
    "sat_models/models/common/_quantised_kernels": quantised_kernels,
}
MODEL_CONFIGS = sorted((ROOT / "configs" / "models").glob("*.json"))


@pytest.fixture(scope="module")
def declared() -> dict[str, Any]:
    """The arguments that setup.py gives to setuptools."""
    setuptools = pytest.importorskip("setuptools", reason="setup.py cannot be read without setuptools")
    given: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", given.update)
        patch.chdir(ROOT)
        runpy.run_path(str(ROOT / "setup.py"))
    return given


def lines_of(name: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def test_requirements_are_those_of_setup(declared: dict[str, Any]) -> None:
    assert lines_of("requirements.txt") == declared["install_requires"]


def test_the_tested_versions_lie_within_the_bounds(declared: dict[str, Any]) -> None:
    requirements = pytest.importorskip("packaging.requirements")
    wanted = [*declared["install_requires"], *(line for lines in declared["extras_require"].values() for line in lines)]
    bounds = {req.name.lower(): req.specifier for req in map(requirements.Requirement, wanted)}
    pins = {req.name.lower(): req.specifier for req in map(requirements.Requirement, lines_of("constraints.txt"))}
    checked = [name for name in pins if name in bounds]
    assert len(checked) >= 8
    for name in checked:
        (pin,) = pins[name]
        assert pin.operator == "==" and bounds[name].contains(pin.version), f"{name}: {pin} is not in {bounds[name]}"


def test_the_pinned_sat_is_the_one_that_the_door_accepts(declared: dict[str, Any]) -> None:
    from mixins.sat_compat import TESTED_SAT_VERSION

    assert f"SwissArmyTransformer=={TESTED_SAT_VERSION}" in declared["install_requires"]


def test_extras(declared: dict[str, Any]) -> None:
    extras = declared["extras_require"]
    assert {"serve", "quant", "test", "all"} <= set(extras)
    needed_by_users = {line for name, lines in extras.items() if name not in ("test", "docs", "all") for line in lines}
    assert set(extras["all"]) == needed_by_users


def test_error_messages_name_extras_that_exist(declared: dict[str, Any]) -> None:
    """Every `MissingPackageError(package, extra, purpose)` in the source."""
    assert f'"{declared["name"]}[serve]"' in str(MissingPackageError("gradio", "serve", "The web demo"))
    named = []
    for path in (ROOT / "sat_models").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "MissingPackageError":
                given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "extra")]
                named.append((path.name, ast.literal_eval(given[1])))
    assert named
    assert [place for place in named if place[1] not in declared["extras_require"]] == []


def test_commands_lead_to_functions(declared: dict[str, Any]) -> None:
    for line in declared["entry_points"]["console_scripts"]:
        module, _, function = line.partition("=")[2].partition(":")
        assert callable(getattr(importlib.import_module(module), function)), line


def test_a_wheel_offers_a_command_for_every_script(declared: dict[str, Any]) -> None:
    """A script calls a command of the package, which those have who install the wheel."""
    lines = declared["entry_points"]["console_scripts"]
    offered = {tuple(line.partition("=")[2].split(":")) for line in lines}
    homes = {module for module, _ in offered}
    for path in sorted((ROOT / "scripts").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
        called = {(node.module, alias.name) for node in imports for alias in node.names}
        assert homes & {module for module, _ in called}, path.name
        assert not {name for _, name in called if name.endswith("command")} - {name for _, name in offered}, path.name
        assert "argparse" not in source, f"{path.name}: its flags belong to the command"


def kept(given: Any, back: Any) -> bool:
    """What the file says comes back; defaults may join it."""
    if isinstance(given, dict):
        return all(kept(value, back[key]) for key, value in given.items())
    return back == given


@pytest.mark.parametrize("path", MODEL_CONFIGS, ids=lambda path: path.stem)
def test_every_model_config_parses_and_survives_the_round_trip(path: Path) -> None:
    data = read_json(path)
    config = make_config(data)
    assert type(config) is model_class(data["model_class"]).config_class
    assert make_config(config.to_dict()) == config
    assert all(kept(value, config.to_dict()[key]) for key, value in data.items())


def test_every_model_of_the_zoo_has_a_config() -> None:
    assert MODEL_CONFIGS
    for spec in registry.specs():
        config = make_config(read_json(registry.config_path(spec.name)))
        talks = spec.task == "dialogue"
        assert (config.image_size if talks else config.usual_size[1]) == spec.image_size


def test_the_config_is_found_in_a_checkout_and_in_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(spec.name for spec in registry.specs() if not spec.bundled)
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path / "sat_models")
    with pytest.raises(ValueError, match=f"the config of {name} is missing"):
        registry.config_path(name)
    for root in (tmp_path, tmp_path / "sat_models"):
        place = root / "configs" / "models" / f"{name}.json"
        place.parent.mkdir(parents=True)
        place.touch()
        assert registry.config_path(name) == place
        place.unlink()


def sources(folder: str) -> set[str]:
    """Files of a package folder that a wheel holds as they are: nothing that running or installing it made."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads, so that nothing is written into this checkout."""
    copy = tmp_path_factory.mktemp("build") / "copy"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("sat_models", "mixins", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return copy


def pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def build_options() -> list[str]:
    """Build with the setuptools that is here where it is new enough; else pip fetches one."""
    import setuptools

    return ["--no-build-isolation"] if int(setuptools.__version__.partition(".")[0]) >= 77 else []


CHECK = """
import sat_models, mixins, sys
assert sys.argv[1] in sat_models.__file__ and sys.argv[1] in mixins.__file__, (sat_models.__file__, mixins.__file__)
from sat_models import registry, zoo
from sat_models.generation.steps import native as token_kernels
from sat_models.models.build import make_config
from sat_models.config import read_json
for spec in registry.specs():
    make_config(read_json(registry.config_path(spec.name)))
for name in zoo.list_models(available_only=True):
    if registry.resolve(name).bundled:
        print(zoo.load_pretrained(name, device="cpu").generate(None, "Hello", max_new_tokens=1).finish_reason)
"""


def works(python: Path | str, place: Path, cwd: Path, **environment: str) -> None:
    """The package in `place` imports, finds its configs and loads its bundled models, from another folder."""
    done = subprocess.run(
        [str(python), "-c", CHECK, str(place)], cwd=cwd, env=clean(**environment), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "length" in done.stdout or "stop" in done.stdout


def clean(**extra: str) -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **extra}


@pytest.mark.slow
def test_the_wheel_holds_everything_and_works_elsewhere(checkout: Path, tmp_path: Path) -> None:
    pip("wheel", "--quiet", "--no-deps", *build_options(), "--wheel-dir", str(tmp_path / "wheel"), str(checkout))
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path / "site")
    expected = sources("sat_models") | sources("mixins") | {f"sat_models/{name}" for name in sources("configs")}
    compiled = held - expected
    assert sorted(expected - held) == []
    built = [library for library, module in COMPILED.items() if module.load() is not None]
    assert sorted(name.partition(".")[0] for name in compiled) == built
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    works(sys.executable, tmp_path / "site", elsewhere, PYTHONPATH=str(tmp_path / "site"))
    table = subprocess.run(
        [sys.executable, "-m", "sat_models.zoo"], cwd=elsewhere, env=clean(PYTHONPATH=str(tmp_path / "site")),
        capture_output=True, text=True,
    )  # fmt: skip
    assert table.returncode == 0 and "cogvlm-chat" in table.stdout, table.stderr


@pytest.mark.slow
def test_an_editable_installation_works(checkout: Path, tmp_path: Path) -> None:
    """In an environment of its own, which sees the packages of this one."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    Path(site, "packages_of_the_tests.pth").write_text(sysconfig.get_path("purelib"))
    pip("--python", str(python), "install", "--quiet", "--no-deps", *build_options(), "--editable", str(checkout))
    works(python, checkout, tmp_path)
    edited = checkout / "mixins" / "added_later.py"
    edited.write_text("value = 7\n")
    try:
        code = "import mixins.added_later as added; print(added.value)"
        done = subprocess.run([str(python), "-c", code], cwd=tmp_path, env=clean(), capture_output=True, text=True)
        assert done.stdout.strip() == "7", done.stderr
    finally:
        edited.unlink()
    listing = subprocess.run([str(environment / "bin" / "sat-zoo")], env=clean(), capture_output=True, text=True)
    assert listing.returncode == 0 and "cogvlm-chat" in listing.stdout, listing.stderr
