"""What the tests of the quantizers share."""

import torch


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_state(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        assert torch.equal(found[name], expected[name]), name
