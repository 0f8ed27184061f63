"""Grades that are off by one or more, either way (after Finlayson et al., Science 2019, https://doi.org/10.1126/science.aaw4399)."""

from dataclasses import dataclass

from robustbench_lite.registry import attack
from robustbench_lite.scenarios import Row, Scenario


@attack("shifted-grades")
@dataclass(frozen=True)
class ShiftedGrades(Scenario):
    """Ordinal grades of a retina, one step or more off; two steps are a file of your own, with the goal `grade-shift:steps=2`."""

    title = "Grades of a retina that cannot be relied on"
    domain = "fundus photograph"
    who = "Someone who wants a grading service to look unreliable, such as a competitor, and can touch the images that it is sent."
    can = (
        "They change pixels by at most 1 % of the range from black to white. "
        "They may have the model, or a similar one that they trained themselves."
    )
    happens = (
        "Patients are graded one step or more away from the truth, some too mild and some too severe. "
        "Controls come too late for some of them and too early for others."
    )
    goal = "grade-shift:steps=1"
    rows = (
        Row("PGD, white box", "white box", "pgd:steps=20,step_size=0.5", "linf", 0.01),
        Row("PGD, half as far", "white box", "pgd:steps=20,step_size=0.5", "linf", 0.005),
        Row("PGD, black box", "same architecture", "pgd:steps=20,step_size=0.5", "linf", 0.01),
        Row("PGD, other architecture", "other architecture", "pgd:steps=20,step_size=0.5", "linf", 0.01),
        Row("clumsy handling, at its worst", "nothing", "clumsy", "handling", 1.0),
    )
    data = "phantom:fundus"
    tasks = ("ordinal",)
