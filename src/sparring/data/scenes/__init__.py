"""Generated scenes: a world with an exact oracle, on which everything in the project really runs."""

from sparring.data.scenes.dataset import GENERATION, SPLITS, SceneConfig, SceneProblems

__all__ = ["GENERATION", "SPLITS", "SceneConfig", "SceneProblems"]
