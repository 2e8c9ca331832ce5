"""The segmentation network and the model that is kept: how far it looks, what missing data do, that it comes back."""

import json

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.export import load_model, save_model
from mc_remote_sensing.encoders import SmallPyramid, TimmPyramid, build_pyramid, save_timm_checkpoint
from mc_remote_sensing.encoders_config import BandsConfig, NetworkConfig, PyramidConfig
from mc_remote_sensing.methods.hpcl_net.model import cross_entropy
from mc_remote_sensing.methods.hpcl_net.network import Decoder, SegmentationNetwork, enlarge
from mc_remote_sensing.model import SegmentationConfig, SegmentationModel, load_segmentation_model
from mc_remote_sensing.receptive_field import measure_receptive_field

BANDS = BandsConfig(names=("red", "nir"), mean=(50.0, 300.0), std=(5.0, 60.0))
SMALL = PyramidConfig(backbone="small-w4")
MODALITIES = ("image", "elevation", "stacked", "fused")


def config(**changes):
    plain = {
        "image": SMALL,
        "elevation": SMALL,
        "output_stride": 8,
        "width": 8,
        "rates": (1,),
        "reduction": 4,
        "detail_width": 4,
        "decoder_width": 8,
        "decoder_layers": 1,
    }
    return NetworkConfig.model_validate({**plain, **changes})


def lively(network):
    """Running statistics that are not those of a fresh layer, and no dead channels."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0.3, 0.1, generator=generator)
    return network.eval()


def model(**changes):
    torch.manual_seed(0)
    return lively(SegmentationModel(SegmentationConfig(network=config(**changes), bands=BANDS, resolution_m=2.0)))


def scene(height=64, width=64, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = 50 + 30 * torch.randn(batch, 2, height, width, generator=generator)
    elevation = torch.randn(batch, 4, height, width, generator=generator)
    elevation[:, 3] = 1.0
    return image, elevation, torch.rand(batch, height, width, generator=generator) < 0.9


@pytest.mark.parametrize("stride", [4, 8, 16])
@pytest.mark.parametrize("modality", MODALITIES)
def test_every_modality_gives_a_probability_for_each_pixel_of_any_size(modality, stride):
    made = model(modality=modality, output_stride=stride)
    image, elevation, valid = scene(37, 50, batch=2)
    probability = made(None if modality == "elevation" else image, elevation, valid)
    assert probability.shape == (2, 37, 50)
    assert probability.dtype == torch.float32
    assert ((probability > 0) & (probability < 1)).all()
    assert made.stride == stride


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"modality": "image", "output_stride": 4, "rates": (2, 3)},
        {"output_stride": 16, "decoder_layers": 2},
        {"detail": "both", "norm": "layer", "rates": ()},
    ],
    ids=["fused", "stride 4", "stride 16", "layer norm"],
)
def test_the_receptive_field_is_what_gradients_say(changes):
    """No pixel beyond it matters, and it is wider than needed by less than two strides."""
    made = model(**changes)
    network, stride, field = made.network.double(), made.stride, made.receptive_field
    assert field % 2 == 1
    side = 4 * (field // 2 // stride + 2) * stride
    inputs = {
        name: torch.randn(1, network.encoder(name).channels, 16, side, dtype=torch.float64, requires_grad=True)
        for name in network.encoders
    }
    out = network.decoder(*network.encode(inputs))
    middle = side // 2 // stride * stride
    reach = 0
    for phase in range(stride):
        gradients = torch.autograd.grad(out[0, 8, middle + phase], list(inputs.values()), retain_graph=True)
        touched = torch.stack([(g != 0).flatten(0, 2).any(0) for g in gradients]).any(0).nonzero().squeeze(1)
        reach = max(reach, middle + phase - int(touched[0]), int(touched[-1]) - middle - phase)
    assert reach <= field // 2 < reach + 2 * stride


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_tile_with_its_halo_gives_what_the_whole_scene_gives(modality):
    made = model(modality=modality).double()
    stride, halo = made.stride, made.receptive_field // 2
    halo = -(-halo // stride) * stride
    image, elevation, valid = scene(2 * halo + 40, 2 * halo + 32)
    image, elevation = image.double(), elevation.double()
    whole = made(image if modality != "elevation" else None, elevation, valid)
    cut = (..., slice(8, 8 + 2 * halo + 24), slice(0, 2 * halo + 16))
    tile = made(image[cut] if modality != "elevation" else None, elevation[cut], valid[cut])
    inner = tile[:, halo : halo + 24, halo : halo + 16]
    # probabilities are float32, all before is float64
    torch.testing.assert_close(inner, whole[:, 8 + halo : 32 + halo, halo : halo + 16], rtol=0, atol=1e-7)


def test_weighing_channels_over_the_tile_makes_the_tile_matter():
    squeezed = model(fusion="squeeze")
    assert squeezed.receptive_field is None
    image, elevation, valid = scene(256, 256)
    far = image.clone()
    far[..., -1] += 1000
    assert not torch.equal(squeezed(image, elevation, valid)[0, 0, 0], squeezed(far, elevation, valid)[0, 0, 0])
    plain = model()
    assert torch.equal(plain(image, elevation, valid)[0, 0, 0], plain(far, elevation, valid)[0, 0, 0])


def test_the_receptive_field_of_timm_encoders():
    network = SegmentationNetwork(
        config(modality="image", image={"backbone": "resnet10t"}, output_stride=16, rates=(1,)), BANDS
    )
    field = measure_receptive_field(network)
    assert 200 < field < 500
    image, _, _ = scene(64, 640)
    image.requires_grad_()
    network.eval()(image)[0, 32, 328].backward()
    touched = (image.grad != 0).flatten(0, 2).any(0).nonzero().squeeze(1)
    assert 328 - field // 2 <= int(touched[0]) < 328
    assert 328 < int(touched[-1]) <= 328 + field // 2
    grouped = SegmentationNetwork(config(modality="image"), BANDS)
    grouped.pooling["image"].project[1] = nn.GroupNorm(2, 8)
    assert measure_receptive_field(grouped) is None


def test_enlarging_keeps_cells_at_their_centres():
    ramp = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 1, 2, 8)
    made = enlarge(ramp, 4)[0, 0, 0]
    position = (torch.arange(32) + 0.5) / 4 - 0.5
    torch.testing.assert_close(made, position.clamp(0, 7))
    assert enlarge(ramp, 1) is ramp


def test_the_class_of_a_pixel_is_a_softmax_over_two_scores():
    torch.manual_seed(0)
    decoder = Decoder(config(), 8, 4, 8).eval()
    coarse, fine = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 8, 8)
    labels = torch.randint(0, 2, (2, 32, 32))
    labels[:, :5] = 255
    with torch.no_grad():
        log_odds = decoder(coarse, fine)
        scores = decoder.classifier(decoder.layers(torch.cat([enlarge(coarse, 2), decoder.detail(fine)], 1)))
    two = enlarge(scores, 4)
    torch.testing.assert_close(log_odds.sigmoid(), two.softmax(1)[:, 1])
    expected = functional.cross_entropy(two.double(), labels, ignore_index=255, reduction="sum")
    torch.testing.assert_close(cross_entropy(log_odds.double(), labels).double(), expected, rtol=1e-6, atol=0)


def test_bands_are_normalised_and_invalid_pixels_count_as_the_mean():
    network = SegmentationNetwork(config(), BANDS).eval()
    image, elevation, valid = scene(16, 16)
    seen = network.inputs(image, elevation, valid)
    expected = (image - torch.tensor([50.0, 300.0]).view(2, 1, 1)) / torch.tensor([5.0, 60.0]).view(2, 1, 1)
    torch.testing.assert_close(seen["image"], torch.where(valid[:, None], expected, 0.0))
    assert torch.equal(seen["elevation"], elevation)
    stacked = SegmentationNetwork(config(modality="stacked"), BANDS).inputs(image, elevation, valid)
    assert torch.equal(stacked["image"], torch.cat([seen["image"], elevation], 1))
    broken = torch.where(valid[:, None], image, torch.nan)
    assert torch.equal(network(broken, elevation, valid), network(image, elevation, valid))


def test_no_elevation_is_elevation_known_nowhere():
    for modality in ("fused", "stacked"):
        made = model(modality=modality)
        image, elevation, valid = scene(32, 32)
        assert torch.equal(made(image, None, valid), made(image, torch.zeros_like(elevation), valid))
        assert not torch.equal(made(image, None, valid), made(image, elevation, valid))


def test_a_tile_is_mapped_alike_in_any_company():
    made = model()
    image, elevation, valid = scene(32, 32, batch=3)
    together = made(image, elevation, valid)
    alone = torch.cat([made(image[i : i + 1], elevation[i : i + 1], valid[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_encoders_of_both_modalities_have_weights_of_their_own():
    network = SegmentationNetwork(config(), BANDS)
    first, second = (set(map(id, network.encoder(name).parameters())) for name in ("image", "elevation"))
    assert first
    assert second
    assert not first & second


def test_a_saved_model_comes_back_with_all_that_belongs_to_it(tmp_path):
    made = model()
    made.set_threshold(0.37)
    save_model(made, tmp_path / "run" / "model")
    kept = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["config"]
    assert kept["bands"] == {"names": ["red", "nir"], "mean": [50.0, 300.0], "std": [5.0, 60.0]}
    assert (kept["threshold"], kept["resolution_m"], kept["target"]) == (0.37, 2.0, "landslide")
    assert kept["receptive_field"] == made.receptive_field
    for place in (tmp_path / "run", tmp_path / "run" / "model"):
        again = load_segmentation_model(place)
        assert not again.training
        assert again.config == made.config
        assert torch.equal(again(*scene(40, 48)), made(*scene(40, 48)))
    assert isinstance(load_model(tmp_path / "run" / "model"), SegmentationModel)
    with pytest.raises(ConfigError, match=r"threshold 1\.5"):
        made.set_threshold(1.5)


def test_another_model_is_not_taken_for_one(tmp_path):
    from mc_testkit.toys import ToyEncoder

    save_model(ToyEncoder({"width": 3}), tmp_path / "other")
    with pytest.raises(CheckpointError, match="ToyEncoder, no segmentation model"):
        load_segmentation_model(tmp_path / "other")


@pytest.mark.parametrize(
    ("modality", "inputs", "says"),
    [
        ("fused", (None, torch.zeros(1, 4, 16, 16)), "needs the image"),
        ("elevation", (torch.zeros(1, 2, 16, 16), None), "needs the elevation"),
        ("image", (torch.zeros(1, 3, 16, 16), None), r"the image has shape \(1, 3, 16, 16\); \(batch, 2,"),
        ("fused", (torch.zeros(1, 2, 16, 16), torch.zeros(1, 3, 16, 16)), r"the elevation has shape"),
        ("fused", (torch.zeros(1, 2, 16, 16), torch.zeros(1, 4, 16, 8)), r"elevation has \(16, 8\) pixels"),
        ("fused", (None, None), "give the image, the elevation or both"),
    ],
)
def test_inputs_that_do_not_fit_are_named(modality, inputs, says):
    with pytest.raises(DataError, match=says):
        model(modality=modality)(*inputs)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="did you mean"):
        build_pyramid(PyramidConfig(backbone="resnet34x"), 3, 16)
    with pytest.raises(ConfigError, match="no published weights for 'small-w4'"):
        build_pyramid(PyramidConfig(backbone="small-w4", pretrained=True), 3, 16)
    with pytest.raises(ConfigError, match="feature maps"):
        build_pyramid(PyramidConfig(backbone="vit_tiny_patch16_224"), 3, 16)
    with pytest.raises(ValueError, match="output_stride 4"):
        NetworkConfig(output_stride=4)
    with pytest.raises(ValueError, match="2 band names, 1 means"):
        BandsConfig(names=("a", "b"), mean=(0.0,), std=(1.0, 1.0))
    with pytest.raises(ValueError, match="above 0"):
        BandsConfig(names=("a",), mean=(0.0,), std=(0.0,))


def test_a_small_encoder_halves_and_halves_again():
    for stride in (4, 8, 16, 32):
        encoder = SmallPyramid(4, 5, stride)
        fine, coarse = encoder(torch.zeros(1, 5, 64, 96))
        assert fine.shape == (1, encoder.detail_channels, 16, 24)
        assert coarse.shape == (1, encoder.out_channels, 64 // stride, 96 // stride)


def test_timm_reads_the_weights_of_an_encoder(tmp_path):
    pyramid = TimmPyramid(PyramidConfig(backbone="resnet10t"), 4, 16).eval()
    save_timm_checkpoint(pyramid, tmp_path / "encoder.safetensors")
    plain = timm.create_model(
        "resnet10t", num_classes=0, in_chans=4, output_stride=16, checkpoint_path=str(tmp_path / "encoder.safetensors")
    ).eval()
    x = torch.randn(1, 4, 64, 64)
    torch.testing.assert_close(plain.forward_features(x), pyramid(x)[1])
    with pytest.raises(ConfigError, match="ends? in"):
        save_timm_checkpoint(pyramid, tmp_path / "encoder.pt")
    with pytest.raises(ConfigError, match="timm has no such"):
        save_timm_checkpoint(SmallPyramid(4, 3, 8), tmp_path / "small.safetensors")
