"""Errors of outputs on inputs of other texts."""

import error_elsewhere
import numpy as np
import pytest


def packed(inputs: np.ndarray) -> np.ndarray:
    moment = inputs.T @ inputs
    return moment[np.tril_indices(len(moment))].astype(np.float32)


def test_errors_are_those_of_the_outputs():
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((5, 4)).astype(np.float32)
    coded = weights + 0.1 * rng.standard_normal((5, 4)).astype(np.float32)
    texts = [rng.standard_normal((30, 4)).astype(np.float32) * scale for scale in ([1, 1, 1, 1], [1, 0, 0, 5])]
    name = "blk.3.ffn_up.weight"
    found = error_elsewhere.errors(
        {name: weights, "blk.3.ffn_down.weight": weights},
        {name: coded, "blk.3.ffn_down.weight": weights},
        [{"blk.3.ffn_in.h": packed(x), "blk.3.ffn_down.h": packed(x)} for x in texts],
    )
    expected = [np.square(x @ (weights - coded).T).sum() / np.square(x @ weights.T).sum() for x in texts]
    assert list(found) == [name]
    assert found[name] == pytest.approx(expected, rel=1e-4)


def test_wrong_use_is_told():
    assert error_elsewhere.main([]) == 2
