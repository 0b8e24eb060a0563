"""The directory of a training run: its configuration, metrics, checkpoints, and the best model.

- config.toml: what it does; `cfx train --config` takes it again.
- metrics.jsonl: a line every so many steps, and at the end of an epoch.
- checkpoints/: the latest, step_00001000 and so on, each with all that a resumed run needs.
- best/: the model of lowest validation loss.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from cfx.config.finetuning import PairsRun, RewardRun
from cfx.config.training import TrainRun, read_toml
from cfx.errors import CheckpointError, OutputError, UsageError
from cfx.io.checkpoint import Checkpoint, load_checkpoint, load_opt_state, save_checkpoint
from cfx.io.files import replace_atomically, sole_writer, writing
from cfx.io.journal import JsonLines
from cfx.model import Model
from cfx.training.finetune import FineTuneState, init_state

BEGUN = ("config", "checkpoints", "reference", "lock")
"""What may lie in the directory of a run that was killed before its first checkpoint: names up to their first dot."""


class RunDirectory:
    """Files of one run."""

    def __init__(self, path: Path):
        """Nothing is read or written yet."""
        self.path = Path(path)
        self._metrics = JsonLines(self.path / "metrics.jsonl")

    @contextmanager
    def sole_writer(self) -> Iterator[None]:
        """A block in which no other process writes to the directory, which is made.

        Raises:
            OutputError: if another process is at it, or the directory cannot be made or locked.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with sole_writer(self.path, self.path / "lock"):
            yield

    def check_free(self) -> None:
        """Finds out before the work whether a new run may begin here.

        Raises:
            UsageError: if there is something in it already.
            OutputError: if another process writes to it.
        """
        if self.path.is_dir():
            with self.sole_writer():
                self._check_free()
        else:
            self._check_free()

    def _check_free(self) -> None:
        if self.path.exists() and (
            not self.path.is_dir()
            or self.checkpoints()
            or any(entry.name.split(".")[0] not in BEGUN for entry in self.path.iterdir())
        ):
            raise UsageError(f"{self.path} is not empty", "continue it with `resume`, or choose another directory")

    def create(self, config: TrainRun) -> None:
        """Makes the directory and writes the configuration.

        Raises:
            UsageError: if there is something in it already.
            OutputError: if it cannot be written.
        """
        import tomli_w

        self._check_free()
        try:
            text = tomli_w.dumps(config.tables()).encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"a name in the configuration is no Unicode text: {error.object!r}") from error
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self.tidy()
        fresh = self.path / "config.toml.new"
        replace_atomically(self.path / "config.toml", lambda path: path.write_bytes(text), fresh)

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
            raise CheckpointError(f"{self.path} holds no checkpoint to resume from", "start it again without `resume`")
        return paths[-1]

    def tidy(self) -> None:
        """Removes what a killed process left half-done, and puts back what was being replaced.

        Raises:
            OutputError: if that is not allowed.
        """
        try:
            for old in sorted(self._left("*.old-*")):
                if (name := old.with_name(old.name.partition(".old-")[0])).exists():
                    shutil.rmtree(old)
                else:
                    old.rename(name)
            for partial in self._left("*.partial-*"):
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        except OSError as error:
            raise OutputError(f"cannot tidy {self.path}: {error.strerror}") from error

    def _left(self, pattern: str) -> list[Path]:
        return [*self.path.glob(pattern), *self.path.glob(f"checkpoints/{pattern}")]

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
        self._metrics.add(line)

    def write(self, name: str, text: str) -> Path:
        """Writes a small text file.

        Raises:
            OutputError: if it cannot be written.
        """
        with writing(self.path / name):
            (self.path / name).write_text(text)
        return self.path / name

    def drop_metrics_after(self, step: int) -> None:
        """Forgets lines written after the checkpoint that a run resumes from; those steps will be run again.

        Lines that a full disk or a kill cut short go too.

        Raises:
            OutputError: if the file cannot be written.
        """
        path = self._metrics.path
        if not path.exists():
            return
        text = path.read_bytes()
        lines = text.split(b"\n")[:-1]
        kept = b"".join(line + b"\n" for line in lines if _step(line) <= step)
        if not text.startswith(kept):  # a damaged line among whole ones
            replace_atomically(path, lambda fresh: fresh.write_bytes(kept))
        self._metrics.resume(len(kept))


def _step(line: bytes) -> float:
    """The step of a line of metrics; infinite for one that is none."""
    try:
        return json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return math.inf


class PolicyRun(RunDirectory):
    """Files of a fine-tuning run."""

    def __init__(self, path: Path, config: RewardRun | PairsRun, reference: Model, kind: str):
        """Nothing is read or written yet.

        Args:
            path: of the directory.
            config: what the run does.
            reference: the model it starts from.
            kind: `rl` or `dpo`: how the learner's part of `config` and of a checkpoint is called.
        """
        super().__init__(path)
        self._config, self._reference, self._kind = config, reference, kind
        self._learner = getattr(config, kind)

    def begin(self) -> FineTuneState:
        """Makes the directory, keeps the reference, and gives the state before the first update.

        Raises:
            UsageError, OutputError: see `RunDirectory.create`.
        """
        self.create(self._config)
        reference = self._reference
        save_checkpoint(self.path / "reference", Checkpoint(reference.config, reference.params, reference.info))
        return self._state(reference.params)

    def restore(self) -> tuple[FineTuneState, dict[str, Any]]:
        """The state of the latest checkpoint and what was saved with it, its `step` among it; later metrics go.

        Raises:
            CheckpointError: if there is none.
            UsageError: if it is of something else.
        """
        path = self.latest()
        checkpoint = load_checkpoint(path)
        if self._kind not in checkpoint.info:
            raise UsageError(f"{path} is no checkpoint of cfx rl", "name the directory of such a run")
        state, saved = self._state(checkpoint.params), checkpoint.info[self._kind]
        opt_state = jax.tree.map(jax.numpy.asarray, load_opt_state(path, state.opt_state))
        self.tidy()
        self.drop_metrics_after(saved["step"])
        return state._replace(opt_state=opt_state), saved

    def save(self, state: FineTuneState, saved: dict[str, Any]) -> None:
        """Writes the checkpoint of a step, `saved["step"]`, and removes old ones."""
        self._write(self.checkpoint(saved["step"]), state, saved, state.opt_state)
        self.rotate(self._learner.keep_checkpoints)

    def finish(self, state: FineTuneState, saved: dict[str, Any]) -> None:
        """Writes the policy, RUN/final."""
        self._write(self.path / "final", state, saved)

    def _state(self, params: Any) -> FineTuneState:
        return init_state(params, self._learner.learning_rate, self._learner.clip_norm)

    def _write(self, path: Path, state: FineTuneState, saved: dict[str, Any], opt_state: Any = None) -> None:
        info = {**self._reference.info, self._kind: saved, "run": self._config.tables()}
        save_checkpoint(path, Checkpoint(self._reference.config, jax.device_get(state.params), info), opt_state)
