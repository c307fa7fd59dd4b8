"""Checkpoints of a training run that survive: a crash, a full disk or a damaged file costs the newest one at most.

<folder>/latest                   the step that was saved last; with `model_config.json` beside it, a SAT folder
<folder>/best                     the step with the best score
<folder>/<step>/manifest.json     size and SHA-256 of every file of the step, and what the caller says of it
<folder>/.<step>.writing          a step in the making; worthless once its process is gone
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sat_models import runtime
from sat_models.checkpoint.layout import replaced_name
from sat_models.checkpoint.staging import everywhere, point_latest, publish, start_staging
from sat_models.errors import CheckpointError
from sat_models.files import draft_of, write_text

logger = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
BEST_FILE = "best"
_STEP = re.compile(r"\d+")
_LEFT_OVER = re.compile(r"\.\d+\.(writing|removing)")
_PROBE_BYTES = 1 << 16


class CheckpointStore:
    """The step folders of one run, in a folder that all its processes see.

    Args:
        folder: made when needed.
        keep_last: so many of the newest steps stay, and the best one.
    """

    def __init__(self, folder: Path, *, keep_last: int = 2) -> None:
        if keep_last < 1:
            raise CheckpointError(f"keep_last must be at least 1, got {keep_last}: the newest checkpoint always stays")
        self.folder = Path(folder).expanduser()
        self.keep_last = keep_last
        self._damaged: set[int] = set()  # found by `newest_good`; they do not count as kept

    def check_writable(self, needed_bytes: int = 0) -> None:
        """Before training: see that saving will work. All ranks call it.

        Args:
            needed_bytes: what the checkpoints of the run will take together, those included that are there already.

        Raises:
            CheckpointError: on all ranks, if a rank cannot write there or does not see what rank 0 writes, or if the
                disk has less free.
        """
        marker, first = self.folder / ".probe", runtime.rank() == 0
        failed = "checkpoints cannot be saved"

        def mark() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            marker.touch()

        try:
            everywhere(mark, self.folder, only=first, failed=failed)
            everywhere(lambda: self._probe(marker, needed_bytes), self.folder, failed=failed)
        finally:
            if first:
                with suppress(OSError):
                    marker.unlink()

    def _probe(self, marker: Path, needed_bytes: int) -> None:
        if not marker.exists():
            raise CheckpointError(
                f"process {runtime.rank()} does not see what process 0 writes in {self.folder}; choose a folder that "
                "all nodes share"
            )
        probe = marker.with_name(f"{marker.name}.{runtime.rank()}")
        try:
            with probe.open("wb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
        free, there = shutil.disk_usage(self.folder).free, self._bytes_there() if needed_bytes else 0
        if free + there < needed_bytes:
            raise CheckpointError(
                f"{self.folder} has {_size(free)} free{f' beside {_size(there)} of checkpoints' if there else ''}, but "
                f"the checkpoints of this run need {_size(needed_bytes)} (the last {self.keep_last}, the best, and one "
                "being written). Free space, choose another folder, or keep fewer."
            )

    def _bytes_there(self) -> int:
        """The space of the steps on the disk: new ones will replace them."""
        paths = (path for step in self.steps() for path in (self.folder / str(step)).rglob("*"))
        return sum(path.stat().st_size for path in paths if path.is_file())

    def save(
        self,
        step: int,
        write: Callable[[Path], None],
        *,
        score: float | None = None,
        higher_is_better: bool = False,
        info: Mapping[str, Any] | None = None,
    ) -> Path:
        """Save a step. All ranks call it, with the same arguments.

        `latest` changes after everything of the step is on the disk; only then do older steps go. A step that exists
        is replaced.

        Args:
            write: writes this rank's files (subfolders are fine) into the folder that it is given. If it fails on one
                rank, the others wait for that rank after their own `write`; inside, they are on their own.
            score: of this step on the validation data; None, NaN or infinite is never the best.
            higher_is_better: what `score` means.
            info: kept in the manifest; of things that JSON has.

        Returns:
            The step folder.

        Raises:
            CheckpointError: on every rank if any rank could not write. Earlier checkpoints and `latest` are as before.
        """
        assert step >= 0
        score = float(score) if score is not None and math.isfinite(score) else None
        final, first = self.folder / str(step), runtime.rank() == 0
        staging = draft_of(final)
        try:
            everywhere(lambda: (self._clear_left_overs(), start_staging(staging)), self.folder, only=first)
            everywhere(lambda: write(staging), self.folder)
            files = self._seal(staging)
            manifest = {"step": step, "score": score, "info": dict(info or {}), "files": files}
            everywhere(lambda: self._publish(staging, final, manifest), self.folder, only=first)
        except CheckpointError:
            if first:
                with suppress(OSError):
                    self._clear_left_overs()
            raise
        if first:
            self._damaged.discard(step)
            self._after_saving(higher_is_better)
        return final

    def _seal(self, staging: Path) -> dict[str, dict[str, Any]]:
        """Flush all files to the disk and take their fingerprints, each rank its share of them."""

        def share() -> dict[str, dict[str, Any]]:
            paths = sorted(path for path in staging.rglob("*") if path.is_file())
            mine = paths[runtime.rank() :: runtime.world_size()]
            return {path.relative_to(staging).as_posix(): _fingerprint(path) for path in mine}

        shares = runtime.gather_objects(everywhere(share, self.folder))
        return dict(sorted(item for one in shares for item in one.items()))

    def _publish(self, staging: Path, final: Path, manifest: Mapping[str, Any]) -> None:
        if not manifest["files"]:
            raise CheckpointError(f"nothing was written for step {final.name}")
        write_text(staging / MANIFEST_FILE, json.dumps(manifest, indent=1) + "\n")
        publish(staging, final)
        point_latest(final)

    def _clear_left_overs(self) -> None:
        """Finish what a killed process left: half steps go, a step that was being replaced gets its name back."""
        if not self.folder.is_dir():
            return
        for entry in list(self.folder.iterdir()):
            if _LEFT_OVER.fullmatch(entry.name):
                shutil.rmtree(entry, ignore_errors=True)
        for replaced in self.folder.glob(replaced_name("*")):
            final = self.folder / replaced.name.split(".")[1]
            if _STEP.fullmatch(final.name):
                shutil.rmtree(replaced) if final.exists() else replaced.rename(final)

    def _after_saving(self, higher_is_better: bool) -> None:
        """Update `best` and remove what need not stay. The step is safe by now: an error is only a warning."""
        try:
            whole = {step: manifest for step in self.steps() if (manifest := self._glance(step)) is not None}
            best = _best(whole, higher_is_better)
            if best is not None:
                write_text(self.folder / BEST_FILE, str(best))
            oldest_kept = min(sorted(whole)[-self.keep_last :], default=0)
            for step in self.steps():
                if step < oldest_kept and step != best and (self.folder / str(step) / MANIFEST_FILE).is_file():
                    self._remove(step)
        except OSError as error:
            logger.warning("the checkpoint was saved, but %s could not be tidied: %s", self.folder, error)

    def _remove(self, step: int) -> None:
        doomed = self.folder / f".{step}.removing"  # never half a step under its own name
        shutil.rmtree(doomed, ignore_errors=True)
        (self.folder / str(step)).rename(doomed)
        shutil.rmtree(doomed)

    def _glance(self, step: int) -> dict[str, Any] | None:
        """The manifest of a step that looks whole; its content is not read."""
        try:
            return None if step in self._damaged else self._check(step, hashes=False)
        except CheckpointError:
            return None

    def best(self) -> int | None:
        """The step with the best score, if it is there."""
        with suppress(OSError, ValueError):
            step = int((self.folder / BEST_FILE).read_text(encoding="utf-8"))
            return step if self._glance(step) is not None else None
        return None

    def steps(self) -> list[int]:
        """Steps that have a folder here, whole or not, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(e.name) for e in self.folder.iterdir() if _STEP.fullmatch(e.name) and e.is_dir())

    def verify(self, step: int) -> None:
        """Read a step against its manifest.

        Raises:
            CheckpointError: with the file, and what is wrong with it: missing, its size, its SHA-256.
        """
        self._check(step, hashes=True)

    def _check(self, step: int, *, hashes: bool) -> dict[str, Any]:
        folder = self.folder / str(step)
        manifest = _read_manifest(folder)
        if manifest.get("step") != step:
            raise CheckpointError(f"{folder} holds step {manifest.get('step')}: it was renamed")
        for name, wanted in manifest["files"].items():
            path = folder / name
            try:
                size = path.stat().st_size
                if size != wanted["size"]:
                    raise CheckpointError(f"{path} has {size:,} bytes; {wanted['size']:,} were written")
                if hashes and _sha256(path) != wanted["sha256"]:
                    raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one that was written")
            except FileNotFoundError as error:
                raise CheckpointError(f"{path} is missing") from error
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
        return manifest

    def newest_good(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest step that verifies, with its manifest; None if there is none. All ranks call it.

        Rank 0 reads; each step that does not verify is a warning in its log.

        Raises:
            CheckpointError: on all ranks, if the folder cannot be read.
        """
        found = everywhere(self._find_newest, self.folder, only=runtime.rank() == 0, failed="nothing can be resumed")
        step, manifest, self._damaged = runtime.broadcast_object(found)
        return None if step is None else (self.folder / str(step), manifest)

    def _find_newest(self) -> tuple[int | None, dict[str, Any] | None, set[int]]:
        self._clear_left_overs()
        damaged: set[int] = set()
        for step in reversed(self.steps()):
            try:
                return step, self._check(step, hashes=True), damaged
            except CheckpointError as error:
                logger.warning("checkpoint %d in %s is passed over: %s", step, self.folder, error)
                damaged.add(step)
        return None, None, damaged


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        for entry in manifest["files"].values():
            int(entry["size"]), str(entry["sha256"])
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return manifest


def _best(manifests: Mapping[int, Mapping[str, Any]], higher_is_better: bool) -> int | None:
    scores = {step: manifest["score"] for step, manifest in manifests.items() if manifest.get("score") is not None}
    sign = -1 if higher_is_better else 1
    return min(scores, key=lambda step: (sign * scores[step], step), default=None)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"size": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
