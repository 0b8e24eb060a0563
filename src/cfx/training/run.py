"""A run of training or fine-tuning: its directory, and the loop of its steps.

- config.toml: what it does; of training, `cfx train --config` takes it again.
- metrics.jsonl: a line every so many steps, and at the end of an epoch.
- checkpoints/: the latest, step_00001000 and so on, each with all that a resumed run needs.
- best/: of training, the model of lowest validation loss.
- reference/, final/: of fine-tuning, the model that it started from, and the policy.
"""

import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from cfx.config import PairsRun, RewardRun, SelfTrainRun, TrainRun
from cfx.config.training import read_toml
from cfx.errors import CheckpointError, OutputError, UsageError
from cfx.io.files import parse_json, replace_atomically, sole_writer, writing
from cfx.io.journal import JsonLines
from cfx.reporter import Interrupted, Progress, Reporter, StopRequest

BEGUN = ("config", "checkpoints", "reference", "lock")
"""What may lie in the directory of a run that was killed before its first checkpoint: names up to their first dot."""


class RunDirectory:
    """Files of one run, of training or of fine-tuning.

    Whatever writes or removes a file raises an OutputError if that fails.
    """

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
        if not self.path.exists():
            return
        is_begun = self.path.is_dir() and all(entry.name.split(".")[0] in BEGUN for entry in self.path.iterdir())
        if not is_begun or self.checkpoints():
            raise UsageError(f"{self.path} is not empty", "continue it with `resume`, or choose another directory")

    def create(self, config: TrainRun | RewardRun | PairsRun | SelfTrainRun) -> None:
        """Makes the directory and writes the configuration.

        Raises:
            UsageError: if there is something in it already.
        """
        import tomli_w

        self._check_free()
        try:
            text = tomli_w.dumps(config.tables()).encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"a name in the configuration is not Unicode text: {error.object!r}") from error
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self.tidy()
        file = self.path / "config.toml"
        replace_atomically(file, lambda path: path.write_bytes(text), file.with_name("config.toml.new"))

    def config(self) -> TrainRun:
        """The configuration that the run was started with.

        Raises:
            UsageError: if this is not a training run.
        """
        if not (self.path / "config.toml").exists():
            raise UsageError(f"{self.path} is not a training run (config.toml is missing)")
        return TrainRun.layered(read_toml(self.path / "config.toml"))

    @property
    def best(self) -> Path:
        """The checkpoint of lowest validation loss."""
        return self.path / "best"

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step belongs."""
        return self.path / "checkpoints" / f"step_{step:08d}"

    def checkpoints(self) -> list[Path]:
        """Checkpoints on disk, the latest last."""
        found = [path for path in (self.path / "checkpoints").glob("step_*") if path.name[5:].isdigit()]
        return sorted(found, key=lambda path: int(path.name[5:]))

    def latest(self) -> Path:
        """The checkpoint to resume from.

        Raises:
            CheckpointError: if there is none.
        """
        if not (paths := self.checkpoints()):
            raise CheckpointError(f"{self.path} holds no checkpoint to resume from", "start it again without `resume`")
        return paths[-1]

    def tidy(self) -> None:
        """Removes what a killed process left half-done, and puts back what was being replaced."""
        try:
            for old in sorted(self._left("*.old-*")):
                if (name := old.with_name(old.name.partition(".old-")[0])).exists():
                    shutil.rmtree(old)
                else:
                    old.rename(name)
            for partial in self._left("*.partial-*"):
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        except OSError as error:
            raise OutputError(f"cannot clean up {self.path}: {error.strerror}") from error

    def _left(self, pattern: str) -> list[Path]:
        return [*self.path.glob(pattern), *self.path.glob(f"checkpoints/{pattern}")]

    def rotate(self, keep: int) -> None:
        """Removes all checkpoints but the latest `keep`."""
        for path in self.checkpoints()[:-keep]:
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise OutputError(f"cannot remove {path}: {error.strerror}") from error

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl, whole or not at all."""
        self._metrics.add(line)

    def write(self, name: str, text: str) -> Path:
        """Writes a small text file."""
        with writing(self.path / name):
            (self.path / name).write_text(text)
        return self.path / name

    def drop_metrics_after(self, step: int) -> None:
        """Forgets lines written after the checkpoint that a run resumes from; those steps will be run again.

        Lines that a full disk or a kill cut short go too.
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
        return parse_json(line)["step"]
    except (ValueError, TypeError, KeyError):
        return math.inf


State = TypeVar("State")


class Loop(ABC, Generic[State]):
    """A run of so many steps in a directory; subclasses say what a step does, and what is kept of it.

    Attributes:
        title: of the progress bar.
        compiling: what it says until the first step is done.
        progress: the bar, while steps are made.
        ended: why the run ends before its last step, or "".
    """

    title = "training"
    compiling = "compiling"
    progress: Progress
    ended = ""

    def __init__(self, files: RunDirectory, reporter: Reporter, num_steps: int, checkpoint_steps: int):
        """A run of `num_steps` steps, with a checkpoint every `checkpoint_steps`; nothing is read or written yet."""
        self.files, self.reporter = files, reporter
        self.num_steps, self.checkpoint_steps = num_steps, checkpoint_steps

    @abstractmethod
    def begin(self) -> State:
        """Makes the directory, and the state before the first step with its checkpoint.

        With that checkpoint a run that is killed at once can be resumed, too.
        """

    @abstractmethod
    def restore(self) -> tuple[State, int]:
        """The state of the latest checkpoint and the steps made until then; what was written after it goes."""

    @abstractmethod
    def step(self, state: State, step: int) -> State:
        """Step number `step`, from 0; one that a signal ends early raises Interrupted and changes nothing."""

    @abstractmethod
    def save(self, state: State, done: int, final: bool = False) -> None:
        """Writes the checkpoint after `done` steps; `final` if the run ends here, or stops."""

    def close(self) -> None:
        """Writes what a run leaves beside its checkpoints, when it ends and when it stops."""

    def stopping(self, stop: StopRequest, done: int) -> bool:
        """Whether to stop after `done` steps."""
        return bool(stop)

    def open(self, resume: bool) -> tuple[State, int]:
        """The state to go on from, and the steps made before; a run killed before its first checkpoint begins anew."""
        if not resume or not self.files.checkpoints():
            return self.begin(), 0
        state, done = self.restore()
        self.reporter.message(f"resuming {self.files.path} at step {done} of {self.num_steps}")
        return state, done

    def make_steps(self, state: State, first: int) -> tuple[State, int]:
        """All steps from `first` on; gives the last state and the steps made.

        Raises:
            Interrupted: after a signal, once the work is saved.
        """
        done = first
        with StopRequest() as stop, self.reporter.progress(self.title, self.num_steps) as self.progress:
            self.progress.update(first, self.compiling)
            while done < self.num_steps and not self.ended:
                try:
                    state, done = self.step(state, done), done + 1
                except Interrupted as within:  # the step, which a resumed run makes again
                    self._leave(state, done, within.signum)
                if done == self.num_steps:
                    break
                if self.stopping(stop, done):
                    self._leave(state, done, stop.signum or 15)
                if done % self.checkpoint_steps == 0:
                    self.save(state, done)
        if done > first:
            self.save(state, done, final=True)
        self.close()
        return state, done

    def _leave(self, state: State, done: int, signum: int) -> NoReturn:
        """Saves the work of a run that was asked to stop, and ends it."""
        self.save(state, done, final=True)
        self.close()
        raise Interrupted(signum, f"stopped at step {done}; continue with `resume`")
