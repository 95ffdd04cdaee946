"""Shares of blocks that may be left out, and the order of neurons."""

import block_activity
import numpy as np


def test_silent_neurons_may_go_and_blocks_only_where_all_are_silent():
    energies = np.ones((3, 64))
    energies[:, ::2] = 0
    assert block_activity.left_out(energies, 1, 0.0) == 0.5
    assert block_activity.left_out(energies, 8, 0.0) == 0.0
    assert block_activity.left_out(energies, 8, 0.26) == 0.25


def test_neurons_active_together_become_neighbours():
    rng = np.random.default_rng(1)
    group = rng.permutation(np.repeat(np.arange(2), 32))
    active = rng.integers(0, 2, size=200)
    energies = np.where(active[:, None] == group[None, :], 1.0, 1e-6)
    order = block_activity.together(energies)
    assert sorted(order) == list(range(64))
    ordered = energies[:, order]
    assert block_activity.left_out(energies, 8, 0.01) < 0.1
    assert block_activity.left_out(ordered, 8, 0.01) == 0.5


def test_wrong_use_is_told():
    assert block_activity.main([]) == 2
