"""Certificates in a run: what is proven beside what survived, in table, files, pages and gate; and what cannot both be right."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_fixture import CommandLine, Ran
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.bounded import graph
from robustbench_lite.certifying import Proof
from robustbench_lite.diagnostics import Counter, Finding
from robustbench_lite.errors import InvalidEvaluation, UsageError
from robustbench_lite.gate.decisions import decide
from robustbench_lite.gate.rules import parse
from robustbench_lite.registry import CERTIFICATES
from robustbench_lite.results import Result
from robustbench_lite.store import read_run
from robustbench_lite.threat import ball
from robustbench_lite.trust import trusts

LABELS = torch.zeros(4, dtype=torch.long)


class Brightness(nn.Module):
    """Class 0 below a mean of one half, class 1 above: in linf an image of grey g is broken from 0.5 - g on."""

    def __init__(self) -> None:
        super().__init__()
        self.over = nn.Linear(4, 2)
        with torch.no_grad():
            self.over.weight.copy_(torch.tensor([[-0.25] * 4, [0.25] * 4]))
            self.over.bias.copy_(torch.tensor([0.5, -0.5]))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.over(x.flatten(1))
        return made


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def greys() -> Tensor:
    return torch.tensor([0.1, 0.3, 0.42, 0.6]).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


def ran(**more: Any) -> Result:
    asked = {"attacks": ["fgsm"], "eps": [0.1], "norm": "linf", "certify": ["told"]} | more
    return rb.evaluate(Brightness(), asked.pop("attacks"), (greys(), LABELS), **asked)


@dataclass(frozen=True)
class Told:
    """Says of the greys below a limit that they are proven, each as far as it is asked or as `reach` says."""

    below: float = 0.2
    reach: float = 0.0
    other: bool = False
    norms = ("linf",)

    @property
    def confidence(self) -> float:
        return 0.999 if self.other else 1.0

    def fits(self, classifier: rb.Classifier) -> None: ...

    def holds_for(self, classifier: rb.Classifier) -> str:
        return "another" if self.other else classifier.digest

    def prove(self, classifier: rb.Classifier, images: Tensor, labels: Tensor, ball: Any, draw: Any) -> Proof:
        ASKED.append(len(images))
        sure = images.flatten(1).mean(1) < self.below
        radius = torch.where(sure, self.reach or float(ball.eps), 0.0)
        return Proof(sure & (radius >= ball.eps), torch.where(sure, 0, -1), radius, torch.full_like(radius, torch.nan))


ASKED: list[int] = []


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    CERTIFICATES.names()
    monkeypatch.setitem(CERTIFICATES.found, "told", Told)
    ASKED.clear()


# --- the bracket -----------------------------------------------------------------------------------------------------------


def test_a_row_lies_between_what_is_proven_and_what_survived() -> None:
    result = ran()
    bracket = result.brackets["worst[linf,0.1]"]
    clean = result.of("clean")
    assert (bracket.proven, bracket.surviving, bracket.n, bracket.confidence) == (1, 2, 4, 1.0)
    assert list(bracket.unsettled) == [clean[1].sample_id]  # the third is broken, the fourth is wrong already
    table = result.table.set_index("condition")
    assert table.loc["fgsm[linf,0.1]", ["certified", "unsettled"]].tolist() == [0.25, 1]
    assert table.loc["clean", ["certified", "unsettled"]].isna().all()
    (row,) = result.proof_rows
    assert (row.condition, row.proven, row.n, row.accuracy, row.of_model) == ("told[linf,0.1]", 1, 4, 0.25, True)


class Silent(Brightness):
    """Answers with no number just beside the darkest image."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return super().forward(x) + torch.where((mean > 0.12) & (mean < 0.25), torch.nan, 0.0)[:, None]


def test_where_the_model_gives_no_number_nothing_is_counted_as_proven() -> None:
    result = rb.evaluate(Silent(), ["fgsm"], (greys(), LABELS), eps=[0.1], norm="linf", certify="told")
    row = result.table.set_index("condition").loc["worst[linf,0.1]"]
    assert (row["undecided"], row["certified"]) == (1, 0)
    (ruling,) = decide([parse("worst.certified >= 0.1")], result)
    assert ruling.estimate == 0


@pytest.mark.parametrize("eps", [0.005, 0.05, 0.1, 1 / 255])
def test_a_proof_of_a_size_holds_for_it_however_it_is_rounded(eps: float) -> None:
    assert ran(eps=[eps]).brackets[f"fgsm[linf,{rb.results.eps_text(eps)}]"].proven == 1


def test_a_proof_of_a_larger_ball_holds_for_smaller_ones_and_not_the_other_way() -> None:
    result = ran(eps=[0.05, 0.3], certify=["told:reach=0.2"])
    assert [result.brackets[f"worst[linf,{eps}]"].proven for eps in (0.05, 0.3)] == [1, 0]
    assert [row.proven for row in result.proof_rows] == [1, 0]
    assert result.proof_rows[1].curve == [(pytest.approx(0.2), 0.25)]


def test_a_radius_of_an_images_own_is_proven_once_and_serves_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Told, "radial", True, raising=False)
    result = ran(eps=[0.05, 0.3], certify=["told:reach=0.2"])
    assert ASKED == [4]
    assert [row.proven for row in result.proof_rows] == [1, 0]
    assert [proof.radius for proof in result.proofs[:1]] == [proof.radius for proof in result.proofs[4:5]]


def test_bounds_of_a_linear_model_leave_nothing_open() -> None:
    for certificate in ("ibp", "crown"):
        bracket = ran(certify=[certificate]).brackets["worst[linf,0.1]"]
        assert (bracket.proven, bracket.surviving, list(bracket.unsettled)) == (2, 2, [])


def test_a_proof_of_another_model_makes_no_bracket_and_contradicts_nothing() -> None:
    result = ran(certify=["told:below=1,other=true"])
    assert result.brackets == {}
    assert result.table["certified"].isna().all()
    assert [(row.proven, row.of_model, row.confidence) for row in result.proof_rows] == [(4, False, 0.999)]


def test_a_witness_against_a_proof_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(InvalidEvaluation, match=r"told:below=0.45\[linf,0.1\] proves that .* is 0 up to 0.1, and fgsm"):
        ran(certify=["told:below=0.45"], out=tmp_path / "run")
    with pytest.raises(InvalidEvaluation, match="no figure of this run can be believed"):
        ran(certify=["told:below=0.45"], out=tmp_path / "run")  # again, from what is stored
    stored = read_run(tmp_path / "run")
    assert [c.name for c in stored.conditions] == ["clean", "fgsm[linf,0.1]", "worst[linf,0.1]"]
    for figure in (
        lambda: stored.table,
        lambda: stored.proof_rows,
        lambda: stored.write(("html",)),
        lambda: decide([parse("worst.certified >= 0.1")], stored),
    ):
        with pytest.raises(InvalidEvaluation, match="no figure of this run can be believed"):
            figure()


def test_a_proof_of_an_image_that_is_wrong_already_is_a_contradiction_too() -> None:
    with pytest.raises(InvalidEvaluation, match="found at 0 an image that is 1"):
        ran(eps=[0.001], certify=["told:below=0.7"])
    with pytest.raises(InvalidEvaluation, match="clean found at 0 an image that is 1"):
        ran(attacks=(), eps=[0.001], certify=["told:below=0.7"])


def test_without_an_attack_the_data_or_the_caller_say_the_size() -> None:
    result = ran(attacks=(), eps=[0.2])
    assert [c.name for c in result.conditions] == ["clean"]
    assert [row.condition for row in result.proof_rows] == ["told[linf,0.2]"]
    with pytest.raises(UsageError, match="say with --eps how far a certificate is to reach"):
        ran(attacks=(), eps=None)


def test_a_run_goes_on_with_the_proofs_that_it_lacks(tmp_path: Path) -> None:
    first = ran(out=tmp_path / "run", batch_size=2)
    assert ASKED == [2, 2]
    import sqlite3

    with sqlite3.connect(tmp_path / "run" / "results.sqlite") as database:
        database.execute("DELETE FROM proofs WHERE sample_id = ?", (first.of("clean")[1].sample_id,))
    database.close()
    ASKED.clear()
    again = ran(out=tmp_path / "run", batch_size=2)
    assert ASKED == [1]
    assert again.proofs == first.proofs
    assert again.brackets == first.brackets


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"norm": "l2"}, "told proves in linf, and the run is in l2: add --norm linf"),
        ({"certify": ["told", "told"]}, "asked for twice"),
        ({"certify": ["nonesuch"]}, "unknown certificate 'nonesuch'"),
        ({"radii": {"a": 1.0}}, "leave --radii or --certify out"),
    ],
)
def test_what_cannot_be_certified_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(rb.errors.RobustEvalError, match=words):
        ran(**more)


class Single(Brightness):
    """The same by the sign of one logit."""

    def __init__(self) -> None:
        super().__init__()
        self.over = nn.Linear(4, 1)
        with torch.no_grad():
            self.over.weight.fill_(0.5)
            self.over.bias.fill_(-1.0)
        self.eval()


@pytest.mark.parametrize("certificate", ["ibp", "crown", "zonotope"])
def test_one_logit_is_proven_as_its_two_classes_are(certificate: str) -> None:
    both, one = Brightness(), Single()
    if certificate == "zonotope":
        both, one = (nn.Sequential(nn.Flatten(), each.over).eval() for each in (both, one))
    labels = torch.tensor([0, 0, 1, 1])
    runs = [rb.evaluate(model, ["fgsm"], (greys(), labels), eps=[0.07], norm="linf", certify=certificate) for model in (both, one)]
    assert [bracket.proven for run in runs for bracket in run.brackets.values()] == [3] * 4
    margins = [[proof.margin for proof in run.proofs] for run in runs]
    assert margins[1] == pytest.approx(margins[0], abs=1e-5)
    assert margins[1] == pytest.approx([0.66, 0.26, -0.3, 0.06], abs=1e-4)


def test_several_labels_are_refused() -> None:
    with pytest.raises(UsageError, match="a certificate is of one class among several"):
        rb.evaluate(Brightness(), ["fgsm"], (greys(), torch.ones(4, 2)), eps=[0.1], norm="linf", certify="told")


def test_where_all_that_is_left_is_proven_no_attack_is_missing() -> None:
    """One step of gradients leaves two images, and makes no sound row by itself."""
    name = "fgsm[linf,0.1]"
    plain, partly, proven = (ran(certify=certify).trust[name] for certify in ([], ["told"], ["crown"]))
    assert plain.missing
    assert partly.level == "doubtful"
    assert partly.missing
    assert not proven.missing
    assert not any("no attack" in reason for reason in proven.reasons)


@pytest.mark.parametrize(
    ("weight", "settled", "level"), [("doubts", True, "sound"), ("doubts", False, "doubtful"), ("refutes", True, "refuted")]
)
def test_only_doubts_that_an_attack_would_settle_are_settled_by_proofs(weight: Any, settled: bool, level: str) -> None:
    name, settle = "fgsm[linf,0.1]", (Counter("square"),) if settled else ()
    result = ran(certify=["crown"])
    result.__dict__["findings"] = [Finding("odd", weight, (name,), "seen", "means", settle)]
    assert trusts(result)[name].level == level
    without = replace(result, proofs=[])
    without.__dict__["findings"] = result.findings
    assert trusts(without)[name].level == ("refuted" if weight == "refutes" else "doubtful")


# --- told ------------------------------------------------------------------------------------------------------------------


def test_every_report_tells_the_bracket_and_names_what_is_open(tmp_path: Path) -> None:
    result = ran(out=tmp_path / "run")
    page, _, markdown = result.write(("html", "csv", "markdown"))
    open_image = result.brackets["worst[linf,0.1]"].unsettled[0]
    for text in (page.read_text(encoding="utf-8"), markdown.read_text(encoding="utf-8").replace("\\", "")):
        assert "[25.0, 50.0] %" in text
        assert "told[linf,0.1]" in text
        assert open_image in text
    folder = tmp_path / "run"
    proofs = rows_of(folder / "proofs.csv")
    assert [proof["proven"] for proof in proofs] == ["true", "false", "false", "false"]
    (row,) = rows_of(folder / "certificates.csv")
    assert (row["condition"], row["proven"], row["confidence"]) == ("told[linf,0.1]", "1", "1.0")


def test_a_gate_holds_what_is_proven_to_a_floor() -> None:
    result = ran()
    passes, fails = decide([parse("worst.certified >= 0.01"), parse("worst.certified >= 0.9")], result)
    assert (passes.estimate, passes.outcome) == (0.25, "pass" if (passes.low or 0) >= 0.01 else "inconclusive")
    assert (fails.estimate, fails.outcome) == (0.25, "fail")
    with pytest.raises(UsageError, match="nothing was to be proven in linf of this model"):
        decide([parse("worst.certified >= 0.3")], ran(certify=[]))


def test_the_command_proves_and_the_gate_asks_for_it(robust_eval: CommandLine, inside: Callable[..., Ran]) -> None:
    asked = ("--model", "digits_cnn", "--limit", "8", "--attack", "fgsm", "--eps", "0.002", "--certify", "ibp", "--out", "run")
    assert inside(*asked).code == 0
    (row,) = rows_of(robust_eval.folder / "run" / "certificates.csv")
    assert (row["certificate"], row["n"]) == ("ibp", "8")
    listed = inside("list", "certificates")
    assert "ibp" in listed.out
    bad = inside("gate", "--model", "digits_cnn", "--limit", "8", "--attack", "fgsm", "--rule", "worst.certified >= 0.3")
    assert (bad.code, "nothing is to be proven" in bad.complaint) == (2, True)


# --- what a review found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.001, 1 / 255, 0.01])
def test_a_witness_that_rounding_takes_past_eps_contradicts_a_proof_too(eps: float) -> None:
    """The last grey is broken from 0.5 - 0.4995 on, everywhere in the ball that is said to be proven."""
    images = torch.tensor([0.1, 0.3, 0.42, 0.4995]).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    with pytest.raises(InvalidEvaluation, match="no figure of this run can be believed"):
        rb.evaluate(Brightness(), ["fgsm"], (images, LABELS), eps=[eps], norm="linf", certify="told:below=1")


class Edges(nn.Module):
    """Writes an edge detector's answer into a value that has another name."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.edges, self.last = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, (1, 2), padding=(0, 1)), nn.Linear(16, 2)
        with torch.no_grad():
            self.edges.weight.copy_(torch.tensor([[[[1.0, -1.0]]]]))
            self.last.weight.copy_(torch.cat([torch.ones(1, 16), -torch.ones(1, 16)]))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        kept = height = self.first(x)
        found = torch.relu(self.edges(x))[..., :4] if self.how == "slice" else torch.relu(self.first(x))
        if self.how == "iadd":
            height += found
        elif self.how == "view":
            kept = height.flatten(1)
            torch.relu_(height)
        elif self.how == "identity":
            kept = nn.functional.dropout(height, training=False)
            height = torch.relu_(height)
        made: Tensor = self.last(kept.flatten(1))
        return made


@pytest.mark.parametrize("how", ["iadd", "identity"])
def test_what_is_written_in_place_is_read_by_every_name(how: str) -> None:
    torch.manual_seed(0)
    model = Edges(how).double()
    made = graph(model, (1, 4, 4))
    x = torch.rand(20, 1, 4, 4).double() * 2 - 1
    with torch.no_grad():
        assert torch.allclose(made.logits(x), model(x))


def test_what_is_written_in_place_and_read_in_another_shape_is_refused() -> None:
    with pytest.raises(UsageError, match="leave inplace out"):
        graph(Edges("view"), (1, 4, 4))


def test_a_pooling_by_a_negative_divisor_is_refused() -> None:
    for model in (nn.Sequential(nn.AvgPool2d(2, divisor_override=-1), nn.Flatten(), nn.Linear(4, 2)).eval(),):
        with pytest.raises(UsageError, match="negative divisor"):
            graph(model, (1, 4, 4))


@pytest.mark.parametrize("odd", ["std", "hook", "subclass"])
def test_zonotopes_prove_nothing_of_what_they_do_not_follow(odd: str) -> None:
    torch.manual_seed(0)

    class Turned(nn.Flatten):
        def forward(self, input: Tensor) -> Tensor:
            return -super().forward(input)

    flat = Turned() if odd == "subclass" else nn.Flatten()
    layers = nn.Sequential(flat, nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    if odd == "hook":
        layers[1].register_forward_hook(lambda module, inputs, output: 4 * output)
    classifier = rb.Classifier(layers, mean=(0.5,), std=(-0.2 if odd == "std" else 0.2,), classes=3)
    certificate = CERTIFICATES.build("zonotope")
    if odd != "std":
        with pytest.raises(rb.errors.RobustEvalError):
            certificate.fits(classifier)
        return
    x = torch.rand(8, 1, 4, 4)
    labels = classifier(x).argmax(1)
    proof = certificate.prove(classifier, x, labels, ball("linf", 0.05), None)
    for _ in range(500):
        near = (x + 0.05 * torch.randint(-1, 2, x.shape)).clamp(0, 1)
        assert not (proof.proven & (classifier(near).argmax(1) != labels)).any()
