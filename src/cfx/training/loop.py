"""The loop that training and fine-tuning share: begin or restore, steps with checkpoints on the way, an orderly end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from cfx.reporter import Progress, Reporter
from cfx.signals import Interrupted, StopRequest
from cfx.training.run_directory import RunDirectory

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
        """Nothing is read or written yet.

        Args:
            files: of the run.
            reporter: receives progress.
            num_steps: of the whole run.
            checkpoint_steps: steps between two checkpoints.
        """
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
        """Step number `step`, from 0."""

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
                state, done = self.step(state, done), done + 1
                if done == self.num_steps:
                    break
                if self.stopping(stop, done):
                    self.save(state, done, final=True)
                    self.close()
                    raise Interrupted(stop.signum or 15, f"stopped at step {done}; continue with `resume`")
                if done % self.checkpoint_steps == 0:
                    self.save(state, done)
        if done > first:
            self.save(state, done, final=True)
        self.close()
        return state, done
