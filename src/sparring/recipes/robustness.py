"""The headline: which method makes a model hold up under corruptions seen and not seen in training, and attacks."""

from sparring.data.scenes import SceneConfig
from sparring.recipes.study import Arm, Condition, Study

LARGE = 144
"""Side of the larger canvas in pixels: 81 image tokens instead of 36. Untrained, the bundled model is right on 58 %
there, on 69 % of the same problems at 96 pixels, and on 24 % of blank ones of that size (120 problems, greedy)."""

CONDITIONS = (
    Condition("clean"),
    Condition("seen", ("roma-seen:2",)),
    Condition("unseen", ("roma-unseen:2",)),
    Condition("attacked", ("attacked",)),
    Condition("ood", split="ood"),
    Condition("large", data=SceneConfig(canvas=LARGE)),
    Condition("blank", ("blank",)),
)
"""What every model is tested under. Corruptions at severity 2, the middle of what ROMA trains on here."""

SHARED = {
    "optim": {"learning_rate": 1e-4},
    "trainer": {"validate_every": 25, "save_every": 20, "keep_last": 1},
}

STUDY = Study(
    name="robustness",
    description="GRPO, NoisyRollout, KL-Cov, SaEI and ROMA under corruptions and attacks, five seeds each",
    arms=tuple(Arm(name, name) for name in ("grpo", "noisyrollout", "kl_cov", "saei", "roma")),
    conditions=CONDITIONS,
    seeds=(0, 1, 2, 3, 4),
    steps=100,
    num_test=400,
    shared=SHARED,
)
