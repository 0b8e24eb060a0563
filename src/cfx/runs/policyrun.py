"""What a fine-tuning run keeps of its policy: checkpoints to resume from, the reference, and the policy at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from cfx.config.finetuning import PairsRun, RewardRun
from cfx.core.finetune import FineTuneState, init_state
from cfx.errors import UsageError
from cfx.io.checkpoint import Checkpoint, load_checkpoint, load_opt_state, save_checkpoint
from cfx.model import Model
from cfx.runs.rundir import RunDirectory


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
