"""Studies: methods x seeds from one recipe, done run by run and resumable, then the table that papers print."""

from sparring.recipes.study.conditions import Condition
from sparring.recipes.study.runner import load_recipe, run_study
from sparring.recipes.study.values import Arm, Study, StudyOptions

__all__ = ["Arm", "Condition", "Study", "StudyOptions", "load_recipe", "run_study"]
