"""A study that takes in patients who do not belong in it (Finlayson et al., Science 2019, https://doi.org/10.1126/science.aaw4399)."""

from dataclasses import dataclass

from robustbench_lite.registry import attack
from robustbench_lite.scenarios import Row, Scenario


@attack("filled-trial")
@dataclass(frozen=True)
class FilledTrial(Scenario):
    """Images without the finding that a study asks for are to be read as with it; those with it are in already."""

    title = "A study that fills up with the wrong patients"
    domain = "chest X-ray"
    who = "A site that is paid for every patient it brings into a study, where a model reads the images to decide who may enter."
    can = (
        "They change the image of a patient who would be turned away, by an amount that nobody sees. "
        "They may have the study's model, a similar one that they trained, or a network that everybody can download."
    )
    happens = (
        "People without the disease enter the study and are treated for it, with risks and no benefit. "
        "The study then measures the treatment on the wrong people, and its result misleads."
    )
    goal = "trial-eligibility"
    rows = (
        Row("PGD, white box", "white box", "pgd:steps=20,step_size=0.5", "linf", 0.01),
        Row("PGD, black box", "same architecture", "pgd:steps=20,step_size=0.5", "linf", 0.01),
        Row("PGD, other architecture", "other architecture", "pgd:steps=20,step_size=0.5", "linf", 0.01),
        Row("PGD, public backbone", "public backbone", "pgd:steps=20,step_size=0.5", "linf", 0.01),
        Row("patch of each image's own", "white box", "own-patch", "patch", 0.4),
        Row("clumsy handling, at its worst", "nothing", "clumsy", "handling", 1.0),
    )
    data = "phantom:chest"
