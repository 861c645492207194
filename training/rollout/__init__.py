"""The generation engine that PPO and serving share: static cache, captured decode steps, the trainer's own weights."""

from training.rollout.engine import Rollout, RolloutEngine
from training.rollout.families import fuse_projections

__all__ = ["Rollout", "RolloutEngine", "fuse_projections"]
