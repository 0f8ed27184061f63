"""What an attacker makes of a public pre-trained network: a surrogate, by a new last layer for the classes of the model he is after."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from .classifier import Classifier, Images, Labels, Logits, Preprocess
from .errors import ModelError
from .labelled import LabelledImages, label_tensor

DECAY = 1e-2  # of the new layer's weights on features of unit variance: there may be more features than images
TOGETHER = 64  # images a forward


class Fitted(nn.Module):
    """A backbone that takes images of another size, grey ones too, and answers in the classes of its new head."""

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, backbone: Classifier) -> None:
        super().__init__()
        self.model = copy.deepcopy(backbone.model)
        self.wanted: Preprocess = backbone.preprocess
        for name, values in (("mean", backbone.mean), ("std", backbone.std)):
            self.register_buffer(name, None if values is None else values.clone())
        self.training = False

    def forward(self, images: Images) -> Logits:
        if images.shape[1] == 1 and self.wanted.channels == 3:
            images = images.expand(-1, 3, -1, -1)
        elif images.shape[1] == 3 and self.wanted.channels == 1:
            images = images.mean(1, keepdim=True)
        if self.wanted.size is not None and tuple(images.shape[2:]) != self.wanted.size:
            images = functional.interpolate(images, size=self.wanted.size, mode="bilinear", align_corners=False)
        if self.mean is not None:
            images = images - self.mean
        if self.std is not None:
            images = images / self.std
        logits: Logits = self.model(images)
        return logits


def with_head(backbone: Classifier, images: LabelledImages, outputs: int, device: torch.device) -> Classifier:
    """The backbone with its last linear layer fitted anew to these images, by logistic regression on what that layer is given.

    Args:
        backbone: any classifier that ends in a linear layer; it is left as it is.
        images: those that the attacker has.
        outputs: of the model that he is after; 1 for a single logit.

    Raises:
        ModelError: it does not end in a linear layer, or what it is given is not one row an image.
    """
    fitted = Fitted(backbone).to(device)
    first = torch.stack([images[0][0]]).to(device)
    name, layer = _last(fitted, first, backbone.name)
    features, given = [], []
    listening = layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        with torch.no_grad():
            for start in range(0, len(images), TOGETHER):
                x = torch.stack([images[row][0] for row in range(start, min(start + TOGETHER, len(images)))])
                fitted(x.to(device))
                features.append(given[-1].double().cpu())
                given.clear()
    finally:
        listening.remove()
    weight, bias = logistic(torch.cat(features), label_tensor(images.labels), outputs)
    head = nn.Linear(layer.in_features, outputs).eval()
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    fitted.set_submodule(name, head.to(device))
    with torch.no_grad():
        answer = fitted(first)
    if answer.shape != (1, outputs):
        raise ModelError(f"{backbone.name} does something to what its last linear layer says: give a --backbone that ends in that layer")
    return Classifier(fitted.requires_grad_(False), name=f"{backbone.name}+head", classes=max(2, outputs))


def logistic(features: Tensor, labels: Labels, outputs: int) -> tuple[Tensor, Tensor]:
    """Weight (K, F) and bias (K,) of a logistic regression, softmax or one logit a finding, from zero: the same data, the same layer.

    Args:
        features: (N, F) float64.
    """
    mean, scale = features.mean(0), features.std(0, unbiased=False)
    scale = torch.where(scale > 0, scale, 1)
    x = (features - mean) / scale
    weight = torch.zeros(outputs, x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(outputs, dtype=x.dtype, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")
    truth = labels if labels.dim() == 2 else labels[:, None]

    def loss() -> Tensor:
        solver.zero_grad()
        logits = x @ weight.T + bias
        if labels.dim() == 2 or outputs == 1:
            missed = functional.binary_cross_entropy_with_logits(logits, truth.to(x.dtype), reduction="none").sum(1).mean()
        else:
            missed = functional.cross_entropy(logits, labels)
        total = missed + DECAY / 2 * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        return total

    solver.step(loss)  # type: ignore[no-untyped-call]  # nor for this
    found = weight.detach() / scale
    return found, bias.detach() - found @ mean


def _last(model: nn.Module, image: Images, name: str) -> tuple[str, nn.Linear]:
    """The linear layer that is asked last, and its name."""
    asked: list[tuple[str, nn.Linear, bool]] = []

    def noted(path: str, layer: nn.Linear) -> None:
        handles.append(layer.register_forward_pre_hook(lambda _, inputs: asked.append((path, layer, inputs[0].dim() == 2))))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            noted(path, module)
    try:
        with torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    if not asked or not asked[-1][2]:
        raise ModelError(f"{name} has no linear layer at its end whose input is one row an image: give another --backbone")
    return asked[-1][:2]
