"""ImageNet models through the command line: a ResNet-50 with weights of one's own, and the one that needs no network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_fixture import CommandLine

from robustbench_lite.data import load_data


def fitted_resnet50(file: Path) -> None:
    """Save a ResNet-50 whose last layer was fitted to the 20 bundled images; everything before it is as initialised."""
    from torchvision.models import ResNet50_Weights, resnet50

    from robustbench_lite.zoos import torchvision_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = resnet50(weights=None).eval()
    torch.save(model.state_dict(), file)
    classifier = torchvision_model("resnet50", file, None, False)
    assert ResNet50_Weights.DEFAULT.meta["num_params"] == sum(p.numel() for p in model.parameters())
    images = load_data("imagenet", preprocess=classifier.preprocess)
    x = torch.stack([image for image, _ in images])
    seen = torch.nn.Sequential(*list(model.children())[:-1], torch.nn.Flatten())
    with torch.no_grad():
        features = seen((x - classifier.mean) / classifier.std).double()
    wanted = torch.full((20, 1000), -1.0, dtype=torch.float64)
    wanted[torch.arange(20), torch.tensor(images.labels)] = 1.0
    middle = features.mean(0)
    centred = features - middle
    kernel = centred @ centred.T
    # ridge regression in its dual form, of 20 unknowns
    weight = wanted.T @ torch.linalg.solve(kernel + 1e-4 * kernel.trace() / 20 * torch.eye(20), centred)
    weight -= wanted.mean(0)[:, None] * torch.linalg.solve(kernel + 1e-4 * kernel.trace() / 20 * torch.eye(20), centred).sum(0)
    with torch.no_grad():
        model.fc.weight.copy_(weight)
        model.fc.bias.copy_(wanted.mean(0) - weight @ middle)
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, file)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_resnet50_with_weights_of_ones_own(robust_eval: CommandLine) -> None:
    fitted_resnet50(robust_eval.folder / "mine.pth")
    ran = robust_eval("--model", "resnet50", "--attack", "pgd:steps=4", "--weights", "mine.pth", "--out", "run")
    assert (ran.code, ran.err.count("robust-eval:")) == (0, 0)
    clean, attacked, _ = robust_eval.table("run")
    assert (clean["n"], clean["data"]) == ("20", "imagenet")
    assert int(clean["correct"]) >= 15
    assert float(attacked["mean_backwards"]) > 0
    assert int(attacked["correct"]) < int(clean["correct"])
    assert robust_eval("verify", "run").code == 0


def test_resnet50_without_network_and_weights(robust_eval: CommandLine) -> None:
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    ran = robust_eval("--model", "resnet50", "--attack", "pgd", env={"TORCH_HOME": str(robust_eval.folder / "torch"), **nowhere})
    assert (ran.code, ran.out) == (2, "")
    for word in ("resnet50", "could not be fetched", str(robust_eval.folder / "torch"), "--weights FILE", "efficientnet_lite0"):
        assert word in ran.complaint


@pytest.mark.slow
def test_efficientnet_lite0_breaks_on_every_image(robust_eval: CommandLine) -> None:
    ran = robust_eval("--model", "efficientnet_lite0", "--attack", "fgsm", "--attack", "pgd")
    assert ran.code == 0
    (run,) = (robust_eval.folder / "robust-eval-runs").iterdir()
    correct = {row["condition"]: int(row["correct"]) for row in robust_eval.table(run)}
    assert correct["clean"] == 18
    assert correct["pgd[linf,4/255]"] == correct["worst[linf,4/255]"] == 0
    assert correct["fgsm[linf,4/255]"] >= 0
    assert robust_eval("verify", run).code == 0
