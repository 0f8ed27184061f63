"""A tumour that is to go unseen, by who knows less and less (after Finlayson et al., Science 2019, https://doi.org/10.1126/science.aaw4399)."""

from dataclasses import dataclass

from robustbench_lite.registry import attack
from robustbench_lite.scenarios import Row, Scenario


@attack("missed-tumour")
@dataclass(frozen=True)
class MissedTumour(Scenario):
    """Malignant called benign: with the model, with a twin, with its scores, with its decisions; costs what HopSkipJump costs."""

    title = "A tumour that goes unseen"
    domain = "dermoscopy"
    who = (
        "Someone who gains when a disease is not found, such as an insurer before a policy is signed, or a product's competitor in a trial."
    )
    can = (
        "They change the image by an amount that nobody sees. With the model at hand they compute the change; with access to its answers "
        "they try changes until one works; with neither they compute it on a model of their own."
    )
    happens = (
        "Patients who have the disease are reported free of it, and treatment starts late or never. "
        "Healthy patients' images are left alone, since nothing is to be gained by them."
    )
    goal = "missed-disease"
    rows = (
        Row("PGD, white box", "white box", "pgd:steps=20,step_size=0.5", "linf", 0.01),
        Row("PGD, half as far", "white box", "pgd:steps=20,step_size=0.5", "linf", 0.005),
        Row("PGD, black box", "same architecture", "pgd:steps=20,step_size=0.5", "linf", 0.01),
        Row("PGD, other architecture", "other architecture", "pgd:steps=20,step_size=0.5", "linf", 0.01),
        Row("1,000 questions for scores", "scores", "square:queries=1000", "linf", 0.01),
        Row("questions for decisions", "decisions", "foolbox:HopSkipJumpAttack:steps=10,max_gradient_eval_steps=200", "l2", 1.0),
        Row("clumsy handling, at its worst", "nothing", "clumsy", "handling", 1.0),
    )
    data = "phantom:derm"
    tasks = ("binary", "multi-label")
