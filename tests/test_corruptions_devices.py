"""No corruption mixes devices: each runs on tensors that say they are on an accelerator and hold nothing, so that none is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own: what is cached there holds nothing either. Where the next operation hangs on a value, it is as far as one gets.
PROGRAM = """
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from robustbench_lite.corrupting import Member, draws
from robustbench_lite.registry import CORRUPTIONS

device = torch.device("cuda")
for name in CORRUPTIONS.names():
    if name == "shot_noise":  # its counts are drawn by NumPy
        continue
    for severity in (1, 5):
        member = Member(name, CORRUPTIONS.build(name))
        with FakeTensorMode(allow_non_fake_inputs=True):
            x = torch.zeros(2, 3, 64, 64, device=device)
            try:
                made = member(x, severity, draws(0, name, severity, ["a", "b"], device))
            except DataDependentOutputException:
                print(name, severity, "so far")
            else:
                print(name, severity, made.device.type)
"""


@pytest.mark.slow
def test_devices_are_not_mixed() -> None:
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    ends = [line.rpartition(" ")[2] for line in ran.stdout.splitlines()]
    assert "cpu" not in ends
    assert ends.count("cuda") > 60
