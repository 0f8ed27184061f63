"""The same run gives the same verdicts, whatever the batch size, the order of the images, or how often it was killed."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence

import pytest
from cli_fixture import CommandLine

import robustbench_lite as rb

Verdicts = dict[tuple[str, str], bool | None]


def verdicts(model: str, attack: str, eps: Sequence[float | str], limit: int | None = None, **how: object) -> Verdicts:
    result = rb.evaluate(model, [attack], eps=list(eps), limit=limit, witnesses="none", **how)
    return {(v.condition, v.sample_id): v.broken for v in result.verdicts}


def check(model: str, attack: str, eps: Sequence[float | str], limit: int | None, survivors: tuple[float, float]) -> Verdicts:
    """The verdicts, once they are equal for three batch sizes and two orders of the images."""
    reference = verdicts(model, attack, eps, limit, batch_size=64)
    conditions = {condition for condition, _ in reference if condition.startswith(attack)}
    shares = [[not b for (c, _), b in reference.items() if c == condition] for condition in conditions]
    assert any(survivors[0] <= sum(share) / len(share) <= survivors[1] for share in shares), "nothing could flip here"
    for how in ({"batch_size": 1}, {"batch_size": 7}, {"batch_size": 64, "shuffle_seed": 1}, {"batch_size": 7, "shuffle_seed": 2}):
        other = verdicts(model, attack, eps, limit, **how)
        assert {key for key, broken in reference.items() if other[key] != broken} == set(), how
    return reference


def test_digits_cnn_on_a_few() -> None:
    check("digits_cnn", "pgd:steps=10", [0.04, 0.05], 60, (0.2, 0.8))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_digits_cnn_on_all() -> None:
    reference = check("digits_cnn", "pgd:steps=20", [0.04, 0.05], None, (0.1, 0.9))
    assert len({sample for _, sample in reference}) == 900


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_digits_cnn_killed_half_way_and_resumed(robust_eval: CommandLine) -> None:
    command = ("--model", "digits_cnn", "--attack", "pgd:steps=20", "--eps", "0.04", "--eps", "0.05")
    assert robust_eval(*command, "--out", "whole").code == 0
    whole = robust_eval.broken("whole")
    process = robust_eval.start(*command, "--out", "killed", "--batch-size", "7")
    while len(robust_eval.broken("killed")) < len(whole) / 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(whole) / 2 <= len(robust_eval.broken("killed")) < len(whole)
    assert robust_eval(*command, "--out", "killed", "--shuffle-seed", "5").code == 0
    assert robust_eval.broken("killed") == whole


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_efficientnet_lite0() -> None:
    check("efficientnet_lite0", "pgd:steps=10", ["0.1/255", "0.25/255", "4/255"], None, (0.1, 0.9))
