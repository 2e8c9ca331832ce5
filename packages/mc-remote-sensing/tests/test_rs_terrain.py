"""The made terrain: true files, the same from the same seed, and no way for one modality alone to tell scars from decoys."""

import resource

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from scipy.ndimage import gaussian_filter

from mc_core.errors import ConfigError, RunError
from mc_remote_sensing import terrain
from mc_remote_sensing.terrain import BANDS, TerrainFiles, fractal, write_terrain
from mc_remote_sensing.vectors import write_geopackage


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TerrainFiles:
    return write_terrain(tmp_path_factory.mktemp("terrain"), size_px=384, seed=3, scars=8)


def test_the_image_is_a_geotiff_with_named_bands_and_a_border_without_data(files):
    with rasterio.open(files.image) as image:
        assert (image.driver, image.crs.to_epsg(), image.dtypes) == ("GTiff", 32632, ("uint16",) * 4)
        assert image.descriptions == BANDS
        assert image.res == (2.0, 2.0)
        assert image.nodata == 0
        values = image.read()
        empty = (values == 0).all(axis=0)
        assert np.array_equal(empty, (values == 0).any(axis=0))
        assert 0.05 < empty.mean() < 0.2
        assert empty[0].all()
        assert not empty[192, 192]


def test_the_elevation_is_coarser_lies_elsewhere_and_covers_the_image(files):
    with rasterio.open(files.image) as image, rasterio.open(files.elevation) as elevation:
        assert elevation.crs == image.crs
        assert (elevation.res, elevation.units, elevation.nodata) == ((5.0, 5.0), ("metre",), -9999.0)
        assert shapely.box(*elevation.bounds).contains(shapely.box(*image.bounds))
        offset = (elevation.transform.c - image.transform.c, elevation.transform.f - image.transform.f)
        assert all(abs(value) % 5.0 != 0 for value in offset)
        values = elevation.read(1, masked=True)
        assert 0 < values.mask.sum() < 50
        slope = np.degrees(np.arctan(np.hypot(*np.gradient(values.filled(np.nan), 5.0))))
        assert 10 < np.nanmedian(slope) < 35


def test_labels_and_extent_fit_the_image(files):
    labels, extent, decoys = (geopandas.read_file(path) for path in (files.labels, files.extent, files.decoys))
    with rasterio.open(files.image) as image:
        bounds = shapely.box(*image.bounds)
    assert {frame.crs.to_epsg() for frame in (labels, extent, decoys)} == {32632}
    assert 5 <= len(labels) <= 8
    assert set(decoys["kind"]) == {"tone", "bowl"}
    assert decoys["kind"].value_counts().tolist() == [8, 8]
    assert set(labels["kind"]) == {"landslide"}
    assert labels.is_valid.all()
    assert labels.intersects(extent.geometry[0]).all()
    assert extent.geometry[0].area < 0.9 * bounds.area
    assert all(bounds.contains(shape) for shape in labels.geometry)
    every = [*labels.geometry, *decoys.geometry]
    assert not any(a.intersects(b) for i, a in enumerate(every) for b in every[:i])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(files, tmp_path):
    again = write_terrain(tmp_path / "again", size_px=384, seed=3, scars=8)
    other = write_terrain(tmp_path / "other", size_px=384, seed=4, scars=12)
    for name in TerrainFiles._fields:
        assert getattr(files, name).read_bytes() == getattr(again, name).read_bytes(), name
    for name in ("image", "elevation", "labels", "decoys"):
        assert getattr(files, name).read_bytes() != getattr(other, name).read_bytes(), name


def test_each_kind_of_decoy_shares_exactly_one_trace_with_the_scars(tmp_path):
    """Contrast of inside against a ring outside: of plants in the image, of curvature in the elevation."""
    files = write_terrain(tmp_path, size_px=1024, seed=1)
    labels, decoys = geopandas.read_file(files.labels), geopandas.read_file(files.decoys)
    with rasterio.open(files.image) as image:
        nir, red = image.read([4, 3]).astype(float)
        tone = contrast(
            (nir - red) / np.maximum(nir + red, 1), image.transform, [*labels.geometry, *decoys.geometry], ring=20.0
        )
    with rasterio.open(files.elevation) as elevation:
        height = elevation.read(1).astype(float)
        hollow = height - gaussian_filter(height, 8)
        bowl = contrast(hollow, elevation.transform, [*labels.geometry, *decoys.geometry], ring=25.0)
    kind = np.array([*labels["kind"], *decoys["kind"]])
    for trace, present in ((tone, ("landslide", "tone")), (bowl, ("landslide", "bowl"))):
        has = np.isin(kind, present)
        middle = (np.median(trace[has]) + np.median(trace[~has])) / 2
        assert np.mean((trace < middle) == has) > 0.9, "the trace is there to be learnt"
        scars, decoy = trace[kind == "landslide"], trace[has & (kind != "landslide")]
        wins = np.mean(scars[:, None] < decoy[None, :])
        assert 0.35 < wins < 0.65, "and does not tell the scars from the decoys that share it"


def contrast(field, transform, shapes, *, ring):
    from rasterio.features import geometry_mask

    def mean(shape):
        return field[geometry_mask([shape], field.shape, transform, invert=True)].mean()

    return np.array([mean(s.buffer(-8.0)) - mean(s.buffer(ring + 8.0).difference(s.buffer(8.0))) for s in shapes])


def test_the_outline_is_where_the_tone_ends():
    feature = terrain.Feature(
        "landslide", 100.0, 80.0, 40.0, 25.0, 0.7, 6.0, 1.0, ((0.04, 1.0), (0.02, 2.0), (0.0, 0.0))
    )
    outline = feature.polygon()
    assert np.allclose(feature.local(outline[:, 0], outline[:, 1])[2], 1.0)
    centre, inner, outer = ([100.0, 80.0] + factor * (outline - [100.0, 80.0]) for factor in (0.0, 0.85, 1.02))
    assert np.allclose(feature.shade(*centre.T), 1.0)
    assert np.allclose(feature.shade(*inner.T), 1.0)
    assert np.allclose(feature.shade(*outer.T), 0.0)
    head, toe = (np.array([100.0 + s * 34.0 * np.cos(0.7)]) for s in (-1, 1))
    head_y, toe_y = (np.array([80.0 + s * 34.0 * np.sin(0.7)]) for s in (-1, 1))
    assert feature.bowl(head, head_y)[0] < -1.0 < 1.0 < feature.bowl(toe, toe_y)[0]
    assert feature.bowl(*centre.T[:, :1]) == pytest.approx(-6.0, abs=0.01)


def test_fractal_has_the_spectrum_that_its_roughness_says():
    rng = np.random.default_rng(0)
    fields = np.stack([fractal(256, 256, roughness=0.8, rng=rng) for _ in range(8)])
    assert np.allclose(fields.mean((1, 2)), 0, atol=1e-12)
    assert np.allclose(fields.std((1, 2)), 1)
    lags = np.array([2, 4, 8, 16])
    growth = [np.mean((fields[:, :, lag:] - fields[:, :, :-lag]) ** 2) for lag in lags]
    slope = np.polyfit(np.log(lags), np.log(growth), 1)[0]
    assert slope == pytest.approx(2 * 0.8, abs=0.25)  # variogram of a fractional field: lag^(2H)
    assert abs(np.corrcoef(fields[:, :, 0].ravel(), fields[:, :, -1].ravel())[0, 1]) < 0.9  # opposite sides do not meet


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size_px": 64}, "size_px 64: a terrain needs at least 128"),
        ({"scars": -1}, "scars -1"),
        ({"decoys": -0.5}, "decoys -0.5"),
    ],
)
def test_impossible_sizes_are_refused(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        write_terrain(tmp_path / "t", **arguments)
    assert not (tmp_path / "t").exists()


def test_a_scene_without_scars_has_an_empty_layer(tmp_path):
    files = write_terrain(tmp_path, size_px=128, scars=0)
    labels = geopandas.read_file(files.labels)
    assert len(labels) == 0
    assert labels.crs.to_epsg() == 32632


def test_a_geopackage_keeps_a_coordinate_system_without_a_code_and_replaces_whole_files(tmp_path):
    crs = "+proj=laea +lat_0=46 +lon_0=9.3 +datum=WGS84 +units=m"
    frame = geopandas.GeoDataFrame({"id": [1]}, geometry=[shapely.box(0, 0, 1, 1)], crs=crs)
    path = write_geopackage(tmp_path / "a.gpkg", frame, layer="x")
    empty = write_geopackage(tmp_path / "a.gpkg", frame.iloc[:0], layer="x")
    assert path == empty
    back = geopandas.read_file(path)
    assert back.crs == frame.crs
    assert back.crs.to_epsg() is None
    assert (len(back), list(back.columns)) == (0, ["id", "geometry"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.gpkg"]
    with pytest.raises(ConfigError, match=r"ends in .gpkg"):
        write_geopackage(tmp_path / "a.shp", frame, layer="x")


def test_a_geopackage_on_a_full_disk_is_not_there(tmp_path):
    frame = geopandas.GeoDataFrame(
        {"id": range(3)}, geometry=[shapely.box(i, 0, i + 1, 1) for i in range(3)], crs=32632
    )
    write_geopackage(tmp_path / "a.gpkg", frame, layer="old")
    before = (tmp_path / "a.gpkg").read_bytes()
    many = geopandas.GeoDataFrame(
        {"id": range(4000)}, geometry=[shapely.box(i, 0, i + 1, 1) for i in range(4000)], crs="EPSG:32632"
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for bytes_ in (120_000, 200_000, 500_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, limits[1]))
        try:
            with pytest.raises(RunError, match=r"a.gpkg could not be written .*free space"):
                write_geopackage(tmp_path / "a.gpkg", many, layer="new")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "a.gpkg").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.gpkg"]
