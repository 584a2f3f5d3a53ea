# SPDX-License-Identifier: AGPL-3.0-only
"""Folders of pairs: what is found, how it is split, what is refused."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest

from fusion_models.pairs import (
    DataError,
    find_pair_folders,
    find_sets,
    list_pairs,
    read_class_ids,
)


def write(folder, count=2, size=(8, 8)):
    for kind in ("ir", "vi"):
        (folder / kind).mkdir(parents=True)
        for stem in range(count):
            cv2.imwrite(str(folder / kind / f"{stem:02d}.png"), np.zeros(size, np.uint8))
    return folder


@pytest.fixture
def data(tmp_path):
    for name in ("city/test", "city/train", "medical/ct"):
        write(tmp_path / "data" / name)
    return tmp_path / "data"


def names(sets):
    return [pairs.name for pairs in sets]


def test_all_sets_but_those_for_training_are_the_default(data):
    assert names(find_sets(data)) == ["city/test", "medical/ct"]
    assert names(find_sets(data, ["city/train"])) == ["city/train"]


@pytest.mark.parametrize(("place", "name"), [
    ("city/test", "city/test"), ("city", "city/test"), ("medical/ct", "ct"),
])  # fmt: skip
def test_a_set_or_a_split_can_be_named_itself(data, place, name):
    (found,) = find_sets(data / place)
    assert found.name == name and found.stems == ["00", "01"]


def test_the_best_known_sets_come_first(tmp_path):
    for name in ("aaa/test", "harvard/ct", "tno/test", "msrs/test"):
        write(tmp_path / name)
    expected = ["msrs/test", "tno/test", "harvard/ct", "aaa/test"]
    assert list(find_pair_folders(tmp_path)) == expected


def test_data_are_looked_for_in_the_usual_places(data, tmp_path, monkeypatch):
    monkeypatch.delenv("FUSION_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert names(find_sets("auto")) == ["city/test", "medical/ct"]
    monkeypatch.chdir(data)
    assert names(find_sets("auto")) == ["city/test", "medical/ct"]
    monkeypatch.chdir(data / "city" / "train" / "ir")
    with pytest.raises(DataError, match=r"no image pairs in data, ../shared/data, .; give data="):
        find_sets("auto")
    monkeypatch.setenv("FUSION_DATA", str(data / "city"))
    assert names(find_sets("auto")) == ["city/test"]


def test_an_unknown_set_is_refused_with_those_there_are(data):
    with pytest.raises(DataError, match="no set tno/test.*city/test, .*medical/ct"):
        find_sets(data, ["tno/test"])


def test_a_folder_without_pairs_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"no pairs; expected .*/ir and .*/vi, or a folder of sets"):
        find_sets(tmp_path)


def test_two_folders_of_one_name_are_refused(data, tmp_path):
    write(tmp_path / "other" / "city" / "train")
    with pytest.raises(DataError, match="city/train: in more than one of"):
        find_sets(f"{data},{tmp_path / 'other'}", split="train")


def test_every_eighth_pair_of_train_is_for_validation(tmp_path):
    write(tmp_path / "city" / "train", 17)
    write(tmp_path / "city" / "test", 3)
    (train,) = find_sets(tmp_path, split="train")
    (validation,) = find_sets(tmp_path, split="validation")
    assert validation.stems == ["07", "15"] and validation.name == "city/validation"
    assert len(train) == 15 and not set(train.stems) & set(validation.stems)
    assert find_sets(tmp_path, ["city/validation"]) == [validation]
    assert names(find_sets(tmp_path, split="test")) == ["city/test"]


@pytest.mark.parametrize("name", ["val", "validation"])
def test_a_set_with_a_validation_folder_trains_on_all_its_train_folder(tmp_path, name):
    write(tmp_path / "city" / "train", 17)
    write(tmp_path / "city" / name, 4)
    assert len(find_sets(tmp_path, split="train")[0]) == 17
    (validation,) = find_sets(tmp_path, split="validation")
    assert len(validation) == 4 and validation.name == f"city/{name}"


def test_only_train_folders_are_trained_on_unless_one_is_named(data):
    assert names(find_sets(data, split="train")) == ["city/train"]
    assert names(find_sets(data / "medical/ct", split="train")) == ["ct"]
    with pytest.raises(DataError, match="no split 'train'"):
        find_sets(data / "city/test", split="train")


def test_too_few_pairs_for_a_validation_part_are_refused(data):
    with pytest.raises(DataError, match="city/validation: no pairs; a set needs 8 or more"):
        find_sets(data, split="validation")


def test_a_limit_takes_pairs_evenly_spaced(tmp_path):
    write(tmp_path / "city" / "test", 9)
    assert find_sets(tmp_path, limit=3)[0].stems == ["00", "04", "08"]


def test_hidden_files_are_no_images(data):
    folder = data / "city" / "test"
    for name in ("ir/._00.png", "ir/.hidden.png", "vi/.DS_Store", "vi/Thumbs.db"):
        (folder / name).write_bytes(b"\0\5\26\7")
    assert len(list_pairs(folder)) == 2


def test_class_ids_are_the_indices_of_a_palette_image(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="label images need Pillow")
    labels = np.array([[0, 1], [2, 5]], np.uint8)
    picture = image.fromarray(labels)
    picture.putpalette([0, 0, 0, 64, 0, 128, 64, 64, 0, 0, 128, 192, 0, 0, 192, 128, 128, 0])
    picture.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_class_ids(tmp_path / "palette.png"), labels)
    cv2.imwrite(str(tmp_path / "grey.png"), labels)
    np.testing.assert_array_equal(read_class_ids(tmp_path / "grey.png"), labels)


def test_a_colour_image_is_no_label(tmp_path):
    pytest.importorskip("PIL", reason="label images need Pillow")
    cv2.imwrite(str(tmp_path / "colour.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(DataError, match="colour.png: RGB image; expected one channel"):
        read_class_ids(tmp_path / "colour.png")


def test_finding_and_reading_pairs_needs_no_pytorch():
    code = (
        "import sys, fusion_models.pairs, fusion_models.contract;"
        "import fusion_models.evaluation.evaluate;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_limit_below_0_is_refused(data):
    with pytest.raises(DataError, match="limit=-1: expected 0"):
        find_sets(data, limit=-1)
