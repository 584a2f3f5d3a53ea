# SPDX-License-Identifier: AGPL-3.0-only
"""Converters: small trees of the form in which each set is published become training folders."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

for module in ("torch", "omegaconf", "tqdm"):
    pytest.importorskip(module, reason=f"training needs {module}: pip install .[train]")

from PIL import Image  # noqa: E402
from support_training import load  # noqa: E402

from fusion_models.boxes import read_boxes  # noqa: E402
from fusion_models.pairs import PairSet, list_pairs, read_luminance  # noqa: E402
from training.convert import main  # noqa: E402

SIZE = (36, 48)


def write(path: Path, channels=0, size=SIZE, seed=0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (*size, channels) if channels else size
    image = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    assert cv2.imwrite(str(path), image)
    return image


def write_label(path: Path, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    label = np.zeros(SIZE, np.uint8)
    label[4:9, 6:12], label[20:30, 30:40] = 2, 5
    image = Image.fromarray(label)
    if palette:
        image.putpalette([0, 0, 0, 64, 0, 128, 64, 64, 0, 0, 128, 192, 0, 0, 192, 128, 128, 0])
    image.save(path)


def write_boxes(path: Path, *boxes: tuple[str, int, int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
        f"<ymax>{d}</ymax></bndbox></object>"
        for name, a, b, c, d in boxes
    )
    path.write_text(f"<annotation>{objects}</annotation>")


def msrs(root):
    for split, stems in (("train", ("00001D", "00003N")), ("test", ("00004N",))):
        for stem in stems:
            write(root / split / "ir" / f"{stem}.png")
            write(root / split / "vi" / f"{stem}.png", 3)
            write_label(root / split / "Segmentation_labels" / f"{stem}.png")


def llvip(root):
    for split, stems in (("train", ("010001", "010002")), ("test", ("190001",))):
        for stem in stems:
            write(root / "infrared" / split / f"{stem}.jpg", 3)
            write(root / "visible" / split / f"{stem}.jpg", 3)
            write_boxes(root / "Annotations" / f"{stem}.xml", ("person", 6, 4, 11, 8))


def roadscene(root):
    for stem in ("FLIR_00006", "FLIR_00018", "FLIR_video_00018"):
        write(root / "cropinfrared" / f"{stem}.jpg")
        write(root / "crop_LR_visible" / f"{stem}.jpg", 3)


def m3fd(root):
    for stem in ("00000", "00001", "00002"):
        write(root / "Ir" / f"{stem}.png", 3)
        write(root / "Vis" / f"{stem}.png", 3)
        write_boxes(
            root / "Annotation" / f"{stem}.xml",
            ("People", 6, 4, 11, 8), ("Car", -9, 0, 20, 20), ("Lamp", 40, 0, 47, 9),
            ("Bus", -9, -9, -4, -4),
        )  # fmt: skip


def mfnet(root):
    for stem in ("00001D", "00001D_flip", "00002N", "00003N"):
        write(root / "images" / f"{stem}.png", 4)
        write_label(root / "labels" / f"{stem}.png", palette=True)
    for split, stem in (("train", "00001D"), ("val", "00002N"), ("test", "00003N")):
        (root / f"{split}.txt").write_text(f"{stem}\n")
    (root / "train.txt").write_text("00001D\n00001D_flip\n")


@pytest.fixture
def convert(tmp_path):
    """Writes a made-up set and converts it: `convert(msrs, ...)` is the output folder."""

    def run(make, *arguments, expect=0):
        source = tmp_path / "published"
        if not source.exists():
            source.mkdir()
            make(source)
        output = tmp_path / "data" / make.__name__
        settings = [f"dataset={make.__name__}", f"source={source}", f"output={output}"]
        assert main([*settings, *arguments]) == expect
        return output

    return run


def stems(folder: Path) -> list[str]:
    return sorted(p.stem for p in folder.iterdir())


@pytest.mark.parametrize(("make", "splits"), [
    (msrs, {"train": 2, "test": 1}),
    (llvip, {"train": 2, "test": 1}),
    (roadscene, {"train": 3}),
    (m3fd, {"train": 3}),
    (mfnet, {"train": 1, "val": 1, "test": 1}),
])  # fmt: skip
def test_every_published_form_becomes_folders_that_training_reads(convert, make, splits):
    output = convert(make)
    assert {p.name for p in output.iterdir() if p.is_dir()} == set(splits)
    for split, count in splits.items():
        pairs = load(output / split)
        assert len(pairs) == count
        for ir, vi, mask in pairs.images:
            assert ir.shape == vi.shape == SIZE
            if make is not roadscene:
                assert mask[6, 8] == 1 and mask[25, 35] == 0, "a person is salient, a guardrail not"


def test_images_that_do_not_change_are_copied_byte_by_byte(convert, tmp_path):
    output = convert(llvip)
    for name, published in (("ir", "infrared"), ("vi", "visible")):
        source = tmp_path / "published" / published / "train" / "010001.jpg"
        assert (output / "train" / name / "010001.jpg").read_bytes() == source.read_bytes()


def test_the_fourth_channel_of_mfnet_is_thermal(convert, tmp_path):
    output = convert(mfnet)
    four = cv2.imread(str(tmp_path / "published/images/00001D.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(read_luminance(output / "train/ir/00001D.png"), four[..., 3])
    colour = cv2.imread(str(output / "train/vi/00001D.png"))
    np.testing.assert_array_equal(colour, four[..., :3])


def test_a_person_in_a_car_is_a_person_and_a_lamp_is_nothing(convert):
    label = cv2.imread(str(convert(m3fd) / "train/labels/00000.png"), 0)
    assert label[6, 8] == 2 and label[15, 15] == 1 and label[5, 44] == 0 and label[30, 30] == 0


def test_boxes_are_yolo_text_too(convert):
    output = convert(m3fd)
    lines = (output / "train/boxes/fusion/00000.txt").read_text().splitlines()
    assert lines == [
        "0 0.187500 0.180556 0.125000 0.138889",  # columns 6 to 11 of 48, rows 4 to 8 of 36
        "1 0.218750 0.291667 0.437500 0.583333",  # clipped at the left
        "3 0.916667 0.138889 0.166667 0.277778",
    ]  # the bus is outside
    assert (output / "classes.txt").read_text().split()[:4] == ["People", "Car", "Bus", "Lamp"]


def test_converted_boxes_are_read_with_the_classes_of_their_set(convert):
    root = convert(m3fd) / "train"
    pairs = PairSet("m3fd/train", root, tuple(list_pairs(root)))
    boxes, report = read_boxes(pairs)
    assert len(boxes) == 3 and report.objects == {"people": 3, "car": 3, "lamp": 3}


def test_bad_boxes_are_corrected_or_left_out_and_counted(convert, tmp_path, capsys):
    (tmp_path / "published").mkdir()
    llvip(tmp_path / "published")
    path = tmp_path / "published/Annotations/010001.xml"
    write_boxes(
        path, ("person", 30, 20, 10, 10), ("person", 20, 8, 20, 12), ("Person ", 90, 0, 95, 9),
        ("people", -3, 5, 90, 30),
    )  # fmt: skip
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # byte order mark
    output = convert(llvip)
    rows = (output / "train/boxes/fusion/010001.txt").read_text().splitlines()
    sizes = [tuple(map(float, row.split()[3:])) for row in rows]
    assert len(sizes) == 2 and all(0 < w <= 1 and 0 < h <= 1 for w, h in sizes)
    said = capsys.readouterr().out
    assert "1 boxes with swapped corners, corrected" in said
    assert "1 boxes without area, left out" in said and "1 boxes outside the image" in said


def test_hidden_files_and_other_files_are_no_part_of_a_set(convert, tmp_path):
    (tmp_path / "published").mkdir()
    m3fd(tmp_path / "published")
    for name in ("Ir/._00000.png", "Vis/._00001.png", "Annotation/._00000.xml", "Ir/Thumbs.db"):
        (tmp_path / "published" / name).write_bytes(b"\0\5\26\7")
    (tmp_path / "published/Annotation/classes.txt").write_text("People\n")
    assert stems(convert(m3fd) / "train/ir") == ["00000", "00001", "00002"]


def test_a_class_that_the_set_should_not_have_is_named(convert, tmp_path, capsys):
    (tmp_path / "published").mkdir()
    llvip(tmp_path / "published")
    write_boxes(tmp_path / "published/Annotations/190001.xml", ("dog", 1, 1, 5, 5))
    convert(llvip, expect=2)
    assert "190001.xml: class 'dog'; expected person" in capsys.readouterr().err


def test_links_save_the_copies_and_lead_to_the_source_from_anywhere(convert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = convert(roadscene, "source=published", "symlink=true")
    monkeypatch.chdir("/")
    link = output / "train/vi/FLIR_00006.jpg"
    assert link.is_symlink()
    assert link.resolve() == (tmp_path / "published/crop_LR_visible/FLIR_00006.jpg").resolve()
    assert len(load(output / "train")) == 3


def test_images_that_change_are_written_and_not_linked(convert, tmp_path):
    output = convert(msrs, "symlink=true", "max_width=24")
    assert not (output / "train/ir/00001D.png").is_symlink()
    assert read_luminance(tmp_path / "published/train/ir/00001D.png").shape == SIZE


@pytest.mark.parametrize("make", [roadscene, m3fd])
def test_a_list_of_stems_splits_what_has_no_split(convert, tmp_path, make):
    picked = "FLIR_00018" if make is roadscene else "00001"
    (tmp_path / "test.txt").write_text(f"{picked}.jpg\n\n")
    output = convert(make, f"test={tmp_path / 'test.txt'}")
    assert stems(output / "test" / "ir") == [picked]
    assert len(stems(output / "train" / "vi")) == 2


def test_the_lists_of_an_m3fd_release_are_used(convert, tmp_path):
    def with_lists(root):
        m3fd(root)
        (root / "meta").mkdir()
        for split, stem in (("train", "00002"), ("val", "00000"), ("test", "00001")):
            (root / "meta" / f"{split}.txt").write_text(f"{stem}.png\n")

    with_lists.__name__ = "m3fd"
    output = convert(with_lists)
    assert stems(output / "train" / "ir") == ["00002"] and stems(output / "val/ir") == ["00000"]


def test_wide_images_are_made_smaller_with_their_labels(convert):
    output = convert(msrs, "max_width=24")
    for name in ("ir", "vi", "labels"):
        assert cv2.imread(str(output / "train" / name / "00001D.png")).shape[:2] == (18, 24)
    label = cv2.imread(str(output / "train/labels/00001D.png"), 0)
    assert set(np.unique(label)) == {0, 2, 5}


def test_every_second_pair_of_a_video_is_enough(convert):
    assert stems(convert(roadscene, "every=2") / "train/ir") == ["FLIR_00006", "FLIR_video_00018"]


def test_names_in_other_case_and_missing_labels_are_accepted(convert):
    def lower(root):
        m3fd(root)
        for name in ("Ir", "Vis"):
            (root / name).rename(root / name.lower())
        (root / "Annotation").rename(root / "elsewhere")

    lower.__name__ = "m3fd"
    output = convert(lower)
    assert not (output / "train" / "labels").exists() and len(stems(output / "train/ir")) == 3


def break_size(root):
    write(root / "train/ir/00001D.png", size=(20, 20))


def break_image(root):
    (root / "train/vi/00003N.png").write_bytes(b"GIF89a")


def break_label(root):
    write(root / "train/Segmentation_labels/00001D.png", 3)


def remove_vi(root):
    (root / "train/vi/00003N.png").unlink()


def empty_ir(root):
    for path in (root / "train/ir").iterdir():
        path.unlink()


def remove_test(root):
    (root / "test").rename(root / "elsewhere")


@pytest.mark.parametrize(("harm", "told"), [
    (break_size, "00001D: thermal is 20x20, visible 48x36"),
    (break_image, "00003N.png cannot be read as an image"),
    (break_label, "RGB image; expected one channel"),
    (remove_vi, "1 stems in one of them only: 00003N"),
    (remove_test, "no test in"),
    (remove_test, "published/{train,test}/{ir,vi,Segmentation_labels}/*.png"),
    (empty_ir, "no files in"),
])  # fmt: skip
def test_a_damaged_set_is_refused_by_name_and_leaves_no_output(
    convert, tmp_path, capsys, harm, told
):
    (tmp_path / "published").mkdir()
    msrs(tmp_path / "published")
    harm(tmp_path / "published")
    output = convert(msrs, expect=2)
    assert told in capsys.readouterr().err
    assert not output.exists()


def test_a_broken_annotation_is_named(convert, tmp_path, capsys):
    (tmp_path / "published").mkdir()
    llvip(tmp_path / "published")
    path = tmp_path / "published/Annotations/010002.xml"
    path.write_text(path.read_text().replace("<ymin>4</ymin>", ""))
    convert(llvip, expect=2)
    assert "010002.xml is not a Pascal VOC annotation" in capsys.readouterr().err


def test_a_list_with_stems_that_are_not_there_is_refused(convert, tmp_path, capsys):
    (tmp_path / "test.txt").write_text("FLIR_00006\nFLIR_99999\n")
    convert(roadscene, f"test={tmp_path / 'test.txt'}", expect=2)
    assert "1 of 2 stems have no images, such as FLIR_99999" in capsys.readouterr().err


def test_an_output_that_exists_is_not_touched(convert, capsys):
    output = convert(msrs)
    before = sorted(output.rglob("*"))
    convert(msrs, "every=2", expect=2)
    assert "exists: remove it" in capsys.readouterr().err
    assert sorted(output.rglob("*")) == before


@pytest.mark.parametrize(("arguments", "told"), [
    (["dataset=kitti"], "choose one of msrs, llvip, roadscene, m3fd, mfnet"),
    (["dataset=msrs", "source=/nowhere"], "source='/nowhere': no such folder"),
    (["dataset=msrs", "source=.", "resize=3"], "unknown settings resize"),
    (["dataset=msrs", "source=.", "every=0"], "every must be >= 1"),
])  # fmt: skip
def test_a_wrong_setting_is_refused_with_a_message(capsys, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert told in capsys.readouterr().err
