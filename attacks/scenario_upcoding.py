"""A grade that is paid better (after Finlayson et al., Science 2019, https://doi.org/10.1126/science.aaw4399)."""

from dataclasses import dataclass

from robustbench_lite.registry import attack
from robustbench_lite.scenarios import Row, Scenario


@attack("upcoded-retina")
@dataclass(frozen=True)
class UpcodedRetina(Scenario):
    """Every retina is to get a more severe grade than it has; milder ones are no success."""

    title = "Retinas graded worse than they are"
    domain = "fundus photograph"
    who = "A provider that is paid more for a more severe grade, and that sends the images to the payer's grading model itself."
    can = (
        "They change pixels by at most 1 % of the range from black to white before the image is sent. "
        "They may have the model, a similar one that they trained, or nothing but the scores that it returns."
    )
    happens = (
        "Patients are recorded as sicker than they are, and treatment that they do not need is paid for. "
        "The false grade stays in the record, where the next doctor finds it."
    )
    goal = "upcoding"
    rows = (
        Row("PGD, white box", "white box", "pgd:steps=20,step_size=0.5", "linf", 0.01),
        Row("PGD, black box", "same architecture", "pgd:steps=20,step_size=0.5", "linf", 0.01),
        Row("PGD, public backbone", "public backbone", "pgd:steps=20,step_size=0.5", "linf", 0.01),
        Row("1,000 questions for scores", "scores", "square:queries=1000", "linf", 0.01),
        Row("clumsy handling, at its worst", "nothing", "clumsy", "handling", 1.0),
    )
    data = "phantom:fundus"
    tasks = ("ordinal",)
