"""SaEI beside GRPO on the bundled world: three seeds each, equal rollouts, equal optimizer steps."""

from sparring.recipes.study import Arm, Condition, Study

STUDY = Study(
    name="saei-vs-grpo",
    description="SaEI beside GRPO, three seeds each",
    arms=(Arm("grpo", "grpo"), Arm("saei", "saei")),
    conditions=(
        Condition("clean"),
        Condition("noisy", ("noisy",)),
        Condition("attacked", ("attacked",)),
        Condition("blank", ("blank",)),
        Condition("ood", split="ood"),
    ),
    shared={
        "optim": {"learning_rate": 1e-4},
        "trainer": {"validate_every": 25, "save_every": 50, "keep_last": 1},
    },
)
