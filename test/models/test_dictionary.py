# SPDX-License-Identifier: AGPL-3.0-only
"""The scene dictionary of baffm: clusters, projection of new images, rows of the ablations."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install .[train]")
pytest.importorskip("sklearn", reason="building a dictionary needs scikit-learn")
for module in ("kornia", "lightning_fabric", "omegaconf", "safetensors"):
    pytest.importorskip(module, reason=f"training needs {module}: pip install .[train]")

from fusion_models import create_model, list_models  # noqa: E402
from fusion_models.baffm.dictionary import SceneDictionary, cluster_scenes  # noqa: E402
from fusion_models.settings import ConfigError  # noqa: E402
from fusion_models.trainer import load_config  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "training"))


@pytest.fixture
def scenes():
    """Features of 90 images of three kinds of scene, 60, 20 and 10 of them, and their kinds."""
    rng = np.random.default_rng(0)
    kinds = np.repeat([0, 1, 2], (60, 20, 10))
    centres = 5 * rng.standard_normal((3, 40))
    return (centres[kinds] + rng.standard_normal((90, 40))).astype(np.float32), kinds


def dictionary_of(clusters) -> SceneDictionary:
    means, frequency = torch.from_numpy(clusters.means), torch.from_numpy(clusters.frequency)
    return SceneDictionary(
        means, means, frequency, frequency, "made up", clusters.projection, clusters.projection
    )


def test_scenes_of_one_kind_make_one_cluster_and_the_frequency_is_their_share(scenes):
    features, kinds = scenes
    clusters = cluster_scenes(features, entries=3, components=8)
    assert all(len(set(clusters.labels[kinds == kind])) == 1 for kind in range(3))
    np.testing.assert_allclose(sorted(clusters.frequency), [10 / 90, 20 / 90, 60 / 90], atol=1e-6)
    assert clusters.means.shape == (3, 8)


def test_fewer_images_than_clusters_say_what_to_do(scenes):
    with pytest.raises(ValueError, match="4 images cannot fill 25 clusters: give more data"):
        cluster_scenes(scenes[0][:4], entries=25, components=8)


def test_a_saved_dictionary_finds_the_scene_of_an_image(scenes, tmp_path):
    features, _ = scenes
    clusters = cluster_scenes(features, entries=3, components=8)
    dictionary_of(clusters).save(tmp_path / "scenes.npz")
    loaded = SceneDictionary.load(tmp_path / "scenes.npz")
    np.testing.assert_array_equal(loaded.scenes(features, "vi"), clusters.labels)
    with pytest.raises(ValueError, match="cannot place features of length 7"):
        loaded.scenes(features[:, :7], "vi")


def test_baffm_takes_a_dictionary_of_any_size_and_no_adjustment(scenes, tmp_path):
    clusters = cluster_scenes(scenes[0], entries=5, components=8)
    dictionary_of(clusters).save(tmp_path / "five.npz")
    ir, vi = torch.rand(2, 1, 1, 32, 40)
    for settings in ({"dictionary": str(tmp_path / "five.npz")}, {"adjustment": "none"}):
        assert create_model("baffm", **settings).eval()(ir, vi).shape == ir.shape
    model = create_model("baffm", dictionary=str(tmp_path / "five.npz"), prior="frequency")
    torch.testing.assert_close(
        model.adjust_ir.prior, torch.from_numpy(clusters.frequency) * 5, atol=1e-6, rtol=0
    )


def test_rare_scenes_make_up_a_quarter_of_the_training_images_at_most():
    from analyse_scenes import rare_scenes

    assert rare_scenes(np.array([0.5, 0.05, 0.1, 0.25, 0.1])) == {1, 2, 4}
    assert rare_scenes(np.full(8, 1 / 8)) == {0, 1}


def test_figures_by_scene_name_the_worst_scene_of_enough_images():
    from analyse_scenes import by_scene

    scenes = np.array([0, 0, 0, 4, 4, 7])
    values = np.array([1.0, 2.0, 3.0, 1.5, 0.5, 0.0])
    figures = by_scene(values, scenes, rare={4, 7}, least=2)
    assert (figures.worst, figures.worst_scene) == (1.0, 4)
    assert figures.mean == pytest.approx(8 / 6) and figures.rare == pytest.approx(2 / 3)
    assert figures.scenes == {0: 2.0, 4: 1.0}
    with pytest.raises(ValueError, match="no scene has 4 images"):
        by_scene(values, scenes, rare={4}, least=4)


def test_every_method_has_ablations_whose_settings_exist():
    from ablate import CONFIG, rows_of

    for method in list_models():
        rows = rows_of(method, "")
        assert len(rows) > 3 and len(set(map(tuple, rows.values()))) == len(rows)
        for settings in rows.values():
            load_config([f"method={method}", *settings], CONFIG / "training")


def test_an_unknown_row_lists_the_rows():
    from ablate import rows_of

    with pytest.raises(
        ConfigError, match="no row nothing; there are scenes, N 25; random dictionary"
    ):
        rows_of("baffm", "nothing")
