# SPDX-License-Identifier: AGPL-3.0-only
"""Search of a loss by a task: batches, tasks and the alternating steps."""

from __future__ import annotations

import json

import pytest

for module in ("torch", "kornia"):
    pytest.importorskip(module, reason=f"training needs {module}: pip install .[train]")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from fusion_models.boxes import Boxes  # noqa: E402
from fusion_models.search.data import TaskSampler, TaskSet, boxes_in_window  # noqa: E402
from fusion_models.search.search import Search, SearchSettings, write_trajectory  # noqa: E402
from fusion_models.search.tasks import SegmentationTask  # noqa: E402
from fusion_models.search.terms import FIXED, LossTerms  # noqa: E402

NAMES = ("l1_ir", "l1_vi", "gradient_max")


def made_up(count=4, size=(96, 128)) -> TaskSet:
    """Bright squares in infrared on another visible image, boxed and in the class map."""
    rng = np.random.default_rng(0)
    images, boxes, maps = [], [], []
    for _ in range(count):
        image = rng.integers(40, 90, (*size, 4), np.uint8)
        x, y = rng.integers(10, 60, 2)
        image[y : y + 24, x : x + 16, 0] = 220
        corners = np.array([[x, y, x + 16, y + 24]], np.float32)
        boxes.append(Boxes(np.zeros(1, np.int64), corners / np.float32([128, 96, 128, 96])))
        class_map = np.zeros(size, np.uint8)
        class_map[y : y + 24, x : x + 16] = 2
        images.append(image)
        maps.append(class_map)
    return TaskSet("made up", [f"{i:05d}N" for i in range(count)], images, boxes, maps)


class Mix(nn.Module):
    """A fusion network with a batch norm: a weighted mean of both images."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.mix = nn.Conv2d(2, 1, 1)
        nn.init.constant_(self.mix.weight, 0.1)

    def forward(self, ir, vi):
        return self.mix(self.norm(torch.cat((ir, vi), 1))).sigmoid()


class WantsInfrared(nn.Module):
    """A task that is done best on the infrared image."""

    def forward(self, images, batch):
        return (images.mean(1, keepdim=True) - batch.ir).square().mean()


def searching(steps=6, task=None, names=NAMES, **settings) -> Search:
    torch.manual_seed(0)
    halves = made_up().halves()
    samplers = [TaskSampler([half], 64, 2, seed) for seed, half in enumerate(halves)]
    terms = LossTerms((*names, *FIXED), perceptual="none")
    torch.set_num_threads(1)  # images are tiny, and other processes busy
    settings = SearchSettings(steps=steps, **{"lr": 5e-3, "beta_lr": 0.1, **settings})
    return Search(Mix(), task or WantsInfrared(), terms, *samplers, settings)


def test_crops_show_their_boxes_where_the_image_has_them():
    batch = TaskSampler([made_up()], 64, 8, 0).batch(3)
    assert len(batch.boxes) >= 5  # most crops are placed about an object
    for box, number in zip(batch.boxes, batch.image.long()):
        cx, cy, w, h = (64 * v for v in box.tolist())
        top, left = round(cy - h / 2), round(cx - w / 2)
        inside = batch.ir[number, 0, top : round(cy + h / 2), left : round(cx + w / 2)]
        assert inside.mean() > 0.5 > batch.ir[number].mean()
        marked = batch.class_map[number, top : round(cy + h / 2), left : round(cx + w / 2)]
        assert (marked == 2).float().mean() > 0.95
    again = TaskSampler([made_up()], 64, 8, 0).batch(3)
    assert torch.equal(batch.ir, again.ir) and torch.equal(batch.boxes, again.boxes)


def test_boxes_are_clipped_to_a_window_and_left_out_where_little_of_them_is_inside():
    corners = np.float32([[10, 10, 30, 40], [28, 10, 48, 40], [90, 90, 99, 99]])
    boxes = Boxes(np.array([0, 1, 2]), corners / 100)
    found = boxes_in_window(boxes, corners, 20, 0, 40)
    assert found.classes.tolist() == [0, 1]
    assert (found.corners * 40).tolist() == [[0, 10, 10, 40], [8, 10, 28, 40]]
    assert boxes_in_window(boxes, corners, 25, 0, 40).classes.tolist() == [1]


def test_the_colours_of_a_batch_are_those_of_the_visible_image():
    import cv2

    image = made_up().images[0]
    batch = TaskSampler([made_up(1)], 96, 1, 0).batch(0)
    # Where the crop was taken, and whether it was mirrored: the one that agrees in infrared.
    crops = [image[:, x : x + 96, :][:, ::side] for x in range(33) for side in (1, -1)]
    wanted = (255 * batch.ir[0, 0]).round().numpy().astype(np.uint8)
    crop = next(c for c in crops if np.array_equal(c[..., 0], wanted))
    expected = cv2.cvtColor(np.ascontiguousarray(crop[..., 1:]), cv2.COLOR_YCrCb2RGB) / 255
    shown = batch.rgb(torch.from_numpy(crop[None, None, :, :, 1] / 255).float())[0]
    assert np.abs(shown.permute(1, 2, 0).numpy() - expected).max() < 0.01


def test_shuffled_labels_are_those_of_other_images():
    whole = made_up(6)
    other = whole.with_other_boxes(0)
    assert other.images is whole.images
    assert all(a is not b for a, b in zip(other.boxes, whole.boxes))
    assert {id(b) for b in other.boxes} == {id(b) for b in whole.boxes}


def test_the_weights_move_to_the_term_that_the_task_needs():
    search = searching(20, names=("l1_ir", "l1_vi"))
    search.run(show=False)
    weights = dict(zip(search.names, search.weights.tolist()))
    assert weights["l1_ir"] > 1.5 and sum(weights.values()) == pytest.approx(2)
    assert search.noise.ratio[0] < -2  # more of it lowers the task's loss
    assert search.trajectory.task[-1] < search.trajectory.task[0]


def test_batch_norms_move_once_an_iteration_and_the_trial_steps_leave_the_network_alone():
    search = searching(3, warmup=3)
    search.run(show=False)
    assert search.fusion.norm.num_batches_tracked == 3
    before = {k: v.clone() for k, v in search.fusion.state_dict().items()}
    batches = search.training.batch(0), search.validation.batch(0)
    search._step_weights(*batches)
    assert all(torch.equal(v, before[k]) for k, v in search.fusion.state_dict().items())


def test_an_interrupted_search_goes_on_as_if_nothing_had_happened(tmp_path):
    whole = searching(6)
    whole.run(show=False)
    first = searching(3)
    first.run(tmp_path / "search.ckpt", every=2, show=False)
    second = searching(6)
    second.load(tmp_path / "search.ckpt")
    assert second.step == 3
    second.run(show=False)
    assert torch.allclose(second.weights, whole.weights, atol=1e-6)
    assert second.trajectory.task == pytest.approx(whole.trajectory.task, rel=1e-5)
    other = searching(6, names=("l1_ir", "l1_vi"))
    with pytest.raises(ValueError, match="give the same terms="):
        other.load(tmp_path / "search.ckpt")


def test_the_trajectory_is_written_and_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    search = searching(3)
    search.run(show=False)
    write_trajectory(tmp_path / "trajectory.json", search)
    record = json.loads((tmp_path / "trajectory.json").read_text())
    assert record["names"] == list(NAMES)
    assert np.shape(record["weights"]) == (3, 3) and len(record["task"]) == 3
    assert (tmp_path / "trajectory.png").stat().st_size > 5000


def test_a_segformer_searches_on_class_maps(tmp_path):
    pytest.importorskip("transformers", reason="pip install .[search]")
    task = SegmentationTask()
    search = searching(2, task=task)
    before = {k: v.clone() for k, v in task.named_parameters()}
    search.run(show=False)
    assert all(loss > 0 for loss in search.trajectory.task)
    assert all(norm > 0 for norm in search.trajectory.norm)
    assert any(not torch.equal(p, before[k]) for k, p in task.named_parameters())
