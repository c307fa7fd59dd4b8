"""The container's recipe against the repository: it cannot be built here, but what it names can be looked up."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) with continued lines joined and comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def copied() -> list[str]:
    """What COPY brings into the image, relative to the repository."""
    return [source.rstrip("/") for name, rest in instructions() if name == "COPY" for source in shlex.split(rest)[:-1]]


def test_everything_copied_is_there_and_kept_under_its_name():
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), f"the Dockerfile copies {source}, which is not in the repository"
    for name, rest in instructions():
        if name == "COPY":
            *sources, target = shlex.split(rest)
            assert target == "./" or [target] == sources, f"{rest}: a folder's content would land elsewhere"


def test_the_ignore_file_lets_through_what_is_copied_and_nothing_else():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(copied())


def test_commands_name_files_that_were_copied_before():
    known: set[str] = set()
    named = 0
    for name, rest in instructions():
        if name == "COPY":
            known.update(source.rstrip("/") for source in shlex.split(rest)[:-1])
        if name == "RUN":
            files = re.findall(r"-r (\S+)", rest) + (["setup.py"] if "-e ." in rest else [])
            for file in files:
                named += 1
                assert file in known, f"RUN {rest[:60]} … uses {file}, which no COPY before it brings"
    assert named == 2


def test_torch_is_bounded_as_in_the_requirements():
    bound = next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("torch>="))
    assert any(name == "RUN" and f'"{bound}"' in rest for name, rest in instructions())


@pytest.mark.parametrize("script", ["scripts/finetune_official.sh"])
def test_the_command_in_its_head_is_the_documents(script):
    head = (ROOT / "Dockerfile").read_text()
    command = re.search(rf"#   bash {re.escape(script)} (.*)", head)
    assert (ROOT / script).is_file() and len(shlex.split(command[1])) == 14
    volumes = re.findall(r"-v \S+?:(/\S+?)/? ", head)
    assert volumes == ["/.sat_models", "/checkpoints", "/test"]
    made = next(rest for name, rest in instructions() if name == "RUN" and "mkdir" in rest)
    assert all(f" {volume}" in made for volume in volumes)


def test_the_image_has_the_shell_that_the_document_starts():
    assert ("CMD", '["/usr/bin/bash"]') in instructions()
    assert not any(name == "ENTRYPOINT" for name, _ in instructions()), "it would swallow the given command"
