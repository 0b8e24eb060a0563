"""The loop of fine-tuning: a policy that starts as a model, and the directory with that model as the reference."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cfx.config.finetuning import DPOConfig, PairsRun, RewardRun, RLConfig
from cfx.errors import NumericsError, UsageError
from cfx.io.checkpoint import Checkpoint, load_checkpoint, load_opt_state, save_checkpoint
from cfx.model import Model
from cfx.reporter import Reporter, StopRequest
from cfx.training.devices import Devices
from cfx.training.learner import Gradient, PolicyState, init_policy, update_policy
from cfx.training.run import Loop, RunDirectory


class FineTuning(Loop[PolicyState]):
    """A run that fine-tunes a model; see `Loop`.

    Attributes:
        kind: `rl` or `dpo`: what the learner's part of the configuration, of a checkpoint and of metrics is called.
        remedy: what to do when a gradient is not finite.
        config: how the policy learns.
        reference: the model that the policy starts as, and is held to.
        devices: that it learns on; of several processes one writes the files.
    """

    title = "fine-tuning"
    kind: str
    remedy: str
    config: RLConfig | DPOConfig

    def __init__(self, run: Path, run_config: RewardRun | PairsRun, model: Model, reporter: Reporter, num_steps: int):
        """Nothing is read or written yet."""
        self.reference, self._run_config, self.devices = model, run_config, Devices()
        super().__init__(RunDirectory(run), reporter, num_steps, self.config.checkpoint_steps)

    @abstractmethod
    def saved(self, done: int) -> dict[str, Any]:
        """What a checkpoint keeps beside the state: its `step`, `done`, and more, as JSON can hold it."""

    def restore_saved(self, saved: dict[str, Any]) -> None:
        """Restores what `saved` returned."""

    def begin(self) -> PolicyState:
        """The first state, with the weights of the reference, which is kept on disk for resumed runs."""
        self.devices.exchange(None)  # all have seen that there is nothing to resume
        self.devices.first(lambda: self.files.create(self._run_config))
        self._write(self.files.path / "reference", self.reference.params, self.reference.info)
        state = self._initial_state(self.reference.params)
        self.save(state, 0)
        return state

    def restore(self) -> tuple[PolicyState, int]:
        """See `Loop`.

        Raises:
            CheckpointError: if there is none.
            UsageError: if it is of something else.
        """
        path = self.files.latest()
        checkpoint = load_checkpoint(path)
        if self.kind not in checkpoint.info:
            raise UsageError(f"{path} is not a checkpoint of cfx rl", "name the directory of a run of cfx rl")
        saved = checkpoint.info[self.kind]
        state = self._initial_state(checkpoint.params)
        opt_state = self.devices.replicate(load_opt_state(path, state.opt_state))
        self.devices.first(lambda: self._clean_up(saved["step"]))
        self.restore_saved(saved)
        return state._replace(opt_state=opt_state), saved["step"]

    def _clean_up(self, step: int) -> None:
        self.files.tidy()
        self.files.drop_metrics_after(step)

    def save(self, state: PolicyState, done: int, final: bool = False) -> None:
        """Writes the checkpoint, and removes old ones."""
        self._write(self.files.checkpoint(done), state.params, self._info(done), state.opt_state)
        self.devices.first(lambda: self.files.rotate(self.config.keep_checkpoints))

    def stopping(self, stop: StopRequest, done: int) -> bool:
        """A signal to one process stops all."""
        return any(self.devices.exchange(bool(stop)))

    def finish(self, state: PolicyState, done: int) -> None:
        """Writes the policy, RUN/final."""
        self._write(self.files.path / "final", state.params, self._info(done))

    def update(
        self, state: PolicyState, total: Gradient, scale: float = 1.0, *, step: int
    ) -> tuple[PolicyState, float]:
        """The state after an update at a scale of the learning rate, and the norm of the gradient.

        Raises:
            NumericsError: if that is not finite.
        """
        state, norm = update_policy(
            state, total, np.float32(scale), learning_rate=self.config.learning_rate, clip_norm=self.config.clip_norm
        )
        if not math.isfinite(float(norm)):
            raise NumericsError(
                f"the gradient is not finite at step {step + 1}; the last checkpoint is {self.files.latest()}",
                self.remedy,
            )
        return state, float(norm)

    def _initial_state(self, params: Any) -> PolicyState:
        return self.devices.replicate(init_policy(params, self.config.learning_rate, self.config.clip_norm))

    def _info(self, done: int) -> dict[str, Any]:
        return {**self.reference.info, self.kind: self.saved(done), "run": self._run_config.tables()}

    def _write(self, path: Path, params: Any, info: dict[str, Any], opt_state: Any = None) -> None:
        config = self.reference.config
        self.devices.first(lambda: save_checkpoint(path, Checkpoint(config, jax.device_get(params), info), opt_state))


def watched_means(sums: Mapping[str, float]) -> dict[str, float]:
    """Means over the crystals or pairs of what `Gradient.sums` are sums of."""
    return {name: value / sums["count"] for name, value in sums.items() if name != "count"}
