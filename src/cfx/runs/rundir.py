"""The directory of a training run: its configuration, metrics, checkpoints, and the best model.

- config.toml: what it does; `cfx train --config` takes it again.
- metrics.jsonl: a line every so many steps, and at the end of an epoch.
- checkpoints/: the latest, step_00001000 and so on, each with all that a resumed run needs.
- best/: the model of lowest validation loss.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from cfx.config.training import TrainRun, read_toml
from cfx.errors import CheckpointError, OutputError, UsageError
from cfx.io.cache import replace_atomically


class RunDirectory:
    """Files of one run."""

    def __init__(self, path: Path):
        """Nothing is read or written yet."""
        self.path = Path(path)

    def check_free(self) -> None:
        """Finds out before the work whether a new run may begin here.

        Raises:
            UsageError: if there is something in it already.
        """
        # A run that ended before its first checkpoint leaves a configuration only.
        if self.path.exists() and (
            not self.path.is_dir() or any(entry.name != "config.toml" for entry in self.path.iterdir())
        ):
            raise UsageError(f"{self.path} is not empty", "continue it with --resume, or choose another directory")

    def create(self, config: TrainRun) -> None:
        """Makes the directory and writes the configuration.

        Raises:
            UsageError: if there is something in it already.
            OutputError: if it cannot be written.
        """
        import tomli_w

        self.check_free()
        try:
            text = tomli_w.dumps(config.tables()).encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"a name in the configuration is no Unicode text: {error.object!r}") from error
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "config.toml").write_bytes(text)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error

    def config(self) -> TrainRun:
        """The configuration that the run was started with.

        Raises:
            UsageError: if this is no training run.
        """
        if not (self.path / "config.toml").exists():
            raise UsageError(f"{self.path} is no training run (config.toml is missing)")
        return TrainRun.layered(read_toml(self.path / "config.toml"))

    @property
    def best(self) -> Path:
        """The checkpoint of lowest validation loss."""
        return self.path / "best"

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step belongs."""
        return self.path / "checkpoints" / f"step_{step:08d}"

    def checkpoints(self) -> list[Path]:
        """Those there are, the latest last."""
        found = [path for path in (self.path / "checkpoints").glob("step_*") if path.name[5:].isdigit()]
        return sorted(found, key=lambda path: int(path.name[5:]))

    def latest(self) -> Path:
        """The checkpoint to resume from.

        Raises:
            CheckpointError: if there is none.
        """
        paths = self.checkpoints()
        if not paths:
            raise CheckpointError(f"{self.path} holds no checkpoint to resume from", "start it again without --resume")
        return paths[-1]

    def tidy(self) -> None:
        """Removes what a killed process left half-done, and puts a best model back that was being replaced.

        Raises:
            OutputError: if that is not allowed.
        """
        try:
            for old in sorted(self.path.glob("best.old-*")):
                if self.best.exists():
                    shutil.rmtree(old)
                else:
                    old.rename(self.best)
            for partial in (*self.path.glob("best.partial-*"), *self.path.glob("checkpoints/*.partial-*")):
                shutil.rmtree(partial)
        except OSError as error:
            raise OutputError(f"cannot tidy {self.path}: {error.strerror}") from error

    def rotate(self, keep: int) -> None:
        """Removes all checkpoints but the latest `keep`.

        Raises:
            OutputError: if one cannot be removed.
        """
        for path in self.checkpoints()[:-keep]:
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise OutputError(f"cannot remove {path}: {error.strerror}") from error

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl, whole or not at all.

        Raises:
            OutputError: if it cannot be written.
        """
        path = self.path / "metrics.jsonl"
        try:
            with open(path, "ab", buffering=0) as file:
                start, text = file.tell(), json.dumps(line).encode() + b"\n"
                if file.write(text) < len(text):
                    file.truncate(start)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error

    def write(self, name: str, text: str) -> Path:
        """Writes a small text file.

        Raises:
            OutputError: if it cannot be written.
        """
        try:
            (self.path / name).write_text(text)
        except OSError as error:
            raise OutputError(f"cannot write {self.path / name}: {error.strerror}") from error
        return self.path / name

    def drop_metrics_after(self, step: int) -> None:
        """Forgets lines written after the checkpoint that a run resumes from; those steps will be run again.

        Lines that a full disk or a kill cut short go too.

        Raises:
            OutputError: if the file cannot be written.
        """
        path = self.path / "metrics.jsonl"
        if path.exists():
            kept = "".join(f"{line}\n" for line in path.read_text().split("\n")[:-1] if _step(line) <= step)
            replace_atomically(path, lambda partial: partial.write_text(kept))


def _step(line: str) -> float:
    """The step of a line of metrics; infinite for one that is none."""
    try:
        return json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return math.inf
