"""cfx rl with a reward: loads what the reward needs, then fine-tunes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cfx.config import RewardConfig, RewardRun
from cfx.evaluation.hull import Hull
from cfx.evaluation.setup import open_hull, read_reference
from cfx.model import Model
from cfx.predictors.base import Potential
from cfx.reporter import Reporter
from cfx.rl import reinforce
from cfx.rl.named_rewards import load_reward
from cfx.rl.reinforce import RLResult
from cfx.rl.rewards import Diversity, Reward
from cfx.training.devices import own_gpu


def fine_tune(
    run: Path,
    config: RewardRun,
    model: Model,
    rewards: RewardConfig,
    reporter: Reporter,
    resume: bool = False,
    reward: Reward | None = None,
) -> tuple[RLResult, Reward]:
    """Fine-tunes a model into the directory `run`, see `rl.reinforce.fine_tune`; also gives the reward.

    Args:
        rewards: what makes a crystal good, as it was given.
        reward: what says so instead, where it has no name.
    """
    reward = reward or named_reward(rewards, reporter)
    reporter.message(f"reward {reward.name}: {reward.about}")
    known = read_reference(rewards.reference, -1, reporter) if rewards.reference else None
    diversity = Diversity(rewards.novelty_bonus, rewards.duplicate_penalty, rewards.composition_penalty, known)
    return reinforce.fine_tune(run, config, model, reward, diversity, reporter, resume), reward


def named_reward(rewards: RewardConfig, reporter: Reporter) -> Reward:
    """The reward of a configuration, with its hulls; of several processes on one machine, each uses its own GPU."""
    rewards = replace(rewards, device=own_gpu(rewards.device))

    def hull_for(potential: Potential) -> Hull:
        return open_hull(rewards.hull, rewards.hull_scale, potential, reporter, rewards.corrections)

    def second_hull_for(potential: Potential) -> Hull:
        return open_hull(str(rewards.second_hull), None, potential, reporter, rewards.corrections, own=True)

    return load_reward(rewards, hull_for, second_hull_for)
