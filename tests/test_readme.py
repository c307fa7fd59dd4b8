"""README and docs say what is there: the file tree, links, commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
SHOWN = ("mixins", "sat_models", "scripts", "configs", "docs", "examples", ".ci")
"""Folders that the tree shows; `tests/` is one line of it."""


def tree_paths() -> set[str]:
    """Paths in the tree of docs/architecture.md: two spaces of indentation per level, folders end in `/`."""
    block = re.search(r"```text\n((?:\S+/|  ).*?)```", ARCHITECTURE[ARCHITECTURE.index("## File tree") :], re.S)
    assert block, "docs/architecture.md has no tree"
    paths, folders = set(), []
    for line in block.group(1).splitlines():
        indent, name = len(line) - len(line.lstrip(" ")), line.split()[0]
        folders = folders[: indent // 2]
        if name.endswith("/"):
            folders.append(name.rstrip("/"))
            paths.add("/".join(folders) + "/")
        else:
            paths.add("/".join([*folders, name]))
    return paths


def tracked() -> set[str]:
    """Files of the shown folders that git tracks; what a run has left in the working folder does not count."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {path for path in listed.stdout.splitlines() if path.split("/")[0] in SHOWN}


def test_file_tree_is_what_is_tracked() -> None:
    tree, files = tree_paths(), tracked()
    folders = {f"{parent}/" for path in files for parent in map(str, Path(path).parents) if parent != "."}
    assert not (tree - files - folders - {"tests/"}), "the tree names what is not there"
    assert not (folders - tree), "folders without a line in the tree"


def test_a_box_drawn_into_the_folder_is_not_missed_in_the_tree() -> None:
    """Answers with boxes leave pictures where they were asked for; that is no file of the project."""
    stray = ROOT / "3_boxes.png"
    assert not stray.exists()
    stray.touch()
    try:
        test_file_tree_is_what_is_tracked()
    finally:
        stray.unlink()


PAGES = ["README.md", "README_zh.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in t]
    missing = [t for t in targets if not ((ROOT / name).parent / t).exists()]
    assert not missing
    assert "@@" not in text, "an unfilled place"


def tiny_commands() -> list[str]:
    """Commands in README that need nothing but the bundled model."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    commands = [line.removeprefix("pip install -e . && ") for line in lines if "--query" in line]
    assert len(commands) >= 3
    return commands


@pytest.mark.parametrize("command", tiny_commands())
def test_commands_of_the_bundled_model_answer(command: str) -> None:
    words = shlex.split(command)
    start = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}[words[0]]
    done = subprocess.run([*start, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "no answer"


def test_chinese_readme_has_the_same_commands_links_and_models() -> None:
    chinese = (ROOT / "README_zh.md").read_text(encoding="utf-8")
    for command in [*tiny_commands(), 'pip install -e ".[test]" && pytest']:
        assert command in chinese
    ours, theirs = (set(re.findall(r"\]\(([^)\s]+)", text)) for text in (README, chinese))
    assert ours ^ theirs == {"README_zh.md", "README.md"}
    models = [
        set(re.findall(r"`([^`]+)`", re.search(r"\n\| `cogvlm-tiny`.*?\n\n", t, re.S)[0])) for t in (README, chinese)
    ]
    assert models[0] == models[1]
