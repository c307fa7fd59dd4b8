"""README says what is there: its file tree, its links, its commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHOWN = ("mixins", "sat_models", "scripts", "configs", "docs", "examples", ".ci")
"""Folders whose every file has a line; `tests` is one line."""


def tree_paths() -> set[str]:
    """Paths in README's tree: two spaces of indentation per level, folders end in `/`."""
    block = re.search(r"```text\n(.*?)```", README, re.S)
    assert block, "README has no tree"
    paths, folders = set(), []
    for line in block.group(1).splitlines():
        indent, name = len(line) - len(line.lstrip(" ")), line.split()[0]
        folders = folders[: indent // 2]
        if name.endswith("/"):
            folders.append(name.rstrip("/"))
        else:
            paths.add("/".join([*folders, name]))
    return paths


def files_on_disk() -> set[str]:
    """Files of the shown folders and of the top level that git knows or would know."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    here = [path for path in listed if (ROOT / path).is_file()]
    return {path for path in here if "/" not in path or path.split("/")[0] in SHOWN}


def test_file_tree_is_the_disk() -> None:
    tree, disk = tree_paths(), files_on_disk()
    grouped = {path for path in tree if "*" in path}  # one line for a family of files, such as examples/*.png
    covered = {path for path in disk for pattern in grouped if Path(path).match(pattern)}
    assert not (tree - grouped - disk), "README names files that are not there"
    assert not (disk - tree - covered), "files without a line in README's tree"
    assert all(any(Path(path).match(pattern) for path in disk) for pattern in grouped)


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


def test_chinese_readme_has_the_same_commands() -> None:
    chinese = (ROOT / "README_zh.md").read_text(encoding="utf-8")
    for command in [*tiny_commands(), 'pip install -e ".[test]" && pytest']:
        assert command in chinese
