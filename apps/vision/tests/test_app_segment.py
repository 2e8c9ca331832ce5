"""Pointing at things, and the evaluations that need masks, by the real command on small real files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mc_core.export import load_model, save_model
from mc_testkit.files import write_image_folder
from mc_vision.encoders import TimmEncoder
from mc_vision.encoders_config import EncoderConfig
from mc_vision.prompt import encode_photo, mask_iou, otsu_threshold


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    save_model(TimmEncoder(EncoderConfig(backbone="moco-vit-tiny-8", image_size=64)), folder / "vit")
    save_model(TimmEncoder(EncoderConfig(backbone="resnet10-w16", image_size=32)), folder / "resnet")
    return folder


@pytest.fixture
def photo(tmp_path):
    """A bright square on a dark noisy ground, and its mask with the number 7."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, (80, 120, 3))
    pixels[16:48, 24:72] += 180
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "square.png")
    mask = np.zeros((80, 120), np.uint8)
    mask[16:48, 24:72] = 7
    Image.fromarray(mask).save(tmp_path / "square.seg.png")
    return tmp_path / "square.png"


def refused(done, text):
    assert done.code == 2, done.err
    (line,) = done.err.splitlines()
    assert text in line
    assert "Traceback" not in line


def test_a_point_gives_a_mask_an_overlay_and_its_iou(command, encoders, photo):
    truth = photo.with_name("square.seg.png")
    done = command(
        "segment", encoders / "vit", photo, "--point", "48,32", "--mask", truth, "--mask-id", "7", "--out",
        photo.parent / "out", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    (found,) = json.loads(done.out)["images"]
    with Image.open(found["mask"]) as mask, Image.open(found["overlay"]) as overlay:
        assert mask.size == overlay.size == (120, 80)
        values = np.asarray(mask)
    assert set(np.unique(values)) == {0, 255}
    assert values[32, 48] == 255  # what was pointed at is part of the mask
    assert found["covered"] == pytest.approx((values > 0).mean(), abs=1e-4)
    with Image.open(truth) as seg:
        assert found["iou"] == pytest.approx(mask_iou(values > 0, np.asarray(seg) == 7), abs=1e-4)
    assert found["iou"] > 0.6  # brightness alone tells this square apart, also for an untrained encoder


@pytest.mark.parametrize("number", [7, 255])
def test_the_mask_of_the_object_under_the_point_is_the_truth(command, encoders, photo, number):
    """Its number need not be given: neither where the mask holds others, nor where it is black and white."""
    truth = np.zeros((80, 120), np.uint8)
    truth[16:48, 24:72] = number
    if number == 7:
        truth[60:, :] = 3
        truth[:8, :] = 255  # void
    Image.fromarray(truth).save(photo.with_name("some.png"))
    done = command(
        "segment", encoders / "vit", photo, "--point", "48,32", "--mask", photo.with_name("some.png"), "--json"
    )
    assert done.code == 0, done.err
    (found,) = json.loads(done.out)["images"]
    with Image.open(found["mask"]) as mask:
        assert found["iou"] == pytest.approx(mask_iou(np.asarray(mask) > 0, truth == number), abs=1e-4)
    assert found["iou"] > 0.6
    # its own mask as the truth
    again = command("segment", encoders / "vit", photo, "--point", "48,32", "--mask", found["mask"], "--json")
    assert json.loads(again.out)["images"][0]["iou"] == 1


def test_several_points_take_what_looks_like_any_of_them(encoders, photo):
    with Image.open(photo) as image:
        encoded = encode_photo(load_model(encoders / "vit").eval(), image.convert("RGB"), size=120)
    first, second = encoded.similarity([(48, 32)]), encoded.similarity([(100, 70)])
    both = encoded.similarity([(48, 32), (100, 70)])
    assert (both >= torch.maximum(first, second) - 1e-5).all()
    assert encoded.features_hwD.shape[:2] == (10, 15)  # 80 × 120 pixels in patches of 8: the shape of the photo
    assert first.max() <= 1


def test_the_automatic_threshold_separates_two_levels():
    levels = torch.cat([torch.full((50,), 0.2), torch.full((30,), 0.8)])
    assert 0.2 < otsu_threshold(levels) < 0.8
    assert otsu_threshold(torch.full((4,), 0.3)) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--point", "120,10"], "outside the image, which is 120 pixels wide and 80 high"),
        (["--point=-1,10"], "outside the image"),
        (["--point", "12"], "--point 12: give x,y"),
        ([], "--point is missing"),
        (["--point", "5,5", "--threshold", "2"], "--threshold 2"),
        (["--point", "5,5", "--image-size", "4"], "image size 4 is smaller than one patch"),
        (["--point", "5,5", "--mask", "{photo}"], "is no index mask"),
        (["--point", "5,5", "--mask", "{small}"], "is 5×4 pixels, the image 120×80"),
        (["--point", "5,5", "--mask", "{seg}", "--mask", "{seg}"], "2 masks for 1 images"),
        (["--point", "5,5", "--mask", "{seg}", "--mask-id", "8"], "has no object 8: its objects are 7 (--mask-id)"),
        (
            ["--point", "5,5", "--mask", "{two}"],
            "no object under the point: its objects are 3, 7; name one with --mask-id",
        ),
        (["--point", "5,5", "--mask", "{empty}"], "has no object under the point: it has none"),
        (["{photo}", "--point", "5,5"], "square.png and an image before it would have the same mask file"),
    ],
)
def test_what_cannot_be_segmented_is_said_in_one_line(command, encoders, photo, arguments, text):
    small = photo.with_name("small.png")
    Image.fromarray(np.ones((4, 5), np.uint8)).save(small)
    two, empty = np.zeros((2, 80, 120), np.uint8)
    two[16:48, 24:72], two[60:, 60:] = 7, 3
    for name, mask in (("two", two), ("empty", empty)):
        Image.fromarray(mask).save(photo.with_name(f"{name}.seg.png"))
    names = {name: photo.with_name(f"{name}.seg.png") for name in ("two", "empty")}
    names |= {"photo": photo, "seg": photo.with_name("square.seg.png"), "small": small}
    refused(command("segment", encoders / "vit", photo, *(a.format(**names) for a in arguments)), text)
    assert not photo.with_name("square-mask.png").exists()


def test_an_encoder_without_patches_says_what_it_serves(command, encoders, photo):
    refused(command("segment", encoders / "resnet", photo, "--point", "5,5"), "has no patch tokens")
    done = command("evaluate", encoders / "resnet", "--protocol", "object-similarity")
    refused(done, "it serves pretrain, embed, export and evaluate")


def test_an_image_smaller_than_a_patch_and_one_that_is_none(command, encoders, tmp_path):
    Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save(tmp_path / "dot.png")
    refused(command("segment", encoders / "vit", tmp_path / "dot.png", "--point", "1,1"), "smaller than one patch")
    (tmp_path / "text.png").write_text("no image")
    refused(command("segment", encoders / "vit", tmp_path / "text.png", "--point", "1,1"), "text.png")


def test_patch_protocols_write_tables_json_and_pictures(command, encoders, photo):
    folder = photo.parent
    for i in range(5):
        for name in ("square.png", "square.seg.png"):
            (folder / name.replace("square", f"copy{i}")).write_bytes((folder / name).read_bytes())
    done = command(
        "evaluate", encoders / "vit", "--protocol", "prompt-segmentation", "--data", folder, "--image-size", "64"
    )
    assert done.code == 0, done.err
    report = json.loads((encoders / "vit" / "evaluate-prompt-segmentation.json").read_text())
    assert list(report["results"]) == ["trained", "random init", "mean colour", "position only"]
    center = report["results"]["mean colour"]["segmentation"]["prompts"]["center"]["patch"]
    assert center["oracle"] >= center["best"] >= 0.5  # colour alone finds this square
    with Image.open(encoders / "vit" / "threshold-curves.png") as picture:
        assert min(picture.size) > 300


def test_patches_of_the_embedded_scenes(command, encoders, monkeypatch):
    monkeypatch.setattr("mc_vision_app.evaluate_patches._SCENES", 30)
    done = command("evaluate", encoders / "vit", "--protocol", "object-similarity", "--image-size", "64", "--json")
    assert done.code == 0, done.err
    results = json.loads(done.out)["results"]
    assert list(results) == ["trained", "random init", "mean colour", "position only"]
    assert all(0 <= found["similarity"]["overlap"] <= 1 for found in results.values())
    assert results["trained"]["similarity"]["images"] > 5


def test_clusters_are_compared_with_classes(command, encoders, tmp_path):
    write_image_folder(tmp_path / "data", each=15)
    done = command("evaluate", encoders / "resnet", "--protocol", "cluster", "--data", tmp_path / "data", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert 0.5 <= found["trained"] <= 1
    assert set(found["clusters"]) == {"trained", "random_encoder", "raw_pixels"}
