"""A measured value per pixel: at the image's own size, with padding cut off, in stated units."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.bundle import ClassInfo, Head, TensorSpec
from service.core import Geometry
from service.errors import BundleError
from service.pixels import png
from service.tasks import TASKS, Values, task_of, values
from service.tasks.depth import Depth

HEAD = Head("depth", "depth", (), unit="m", range=(0.5, 80.0))


def read(cells: NDArray[np.float32], geometry: Geometry) -> Values:
    found = task_of(HEAD).read({"depth": cells}, geometry)
    assert isinstance(found, Values)
    return found


def pixels(found: Values) -> NDArray[np.uint16]:
    image = Image.open(io.BytesIO(found.png()))
    assert image.mode in ("I;16", "I")
    return np.asarray(image).astype(np.uint16)


def test_the_png_has_the_values_times_the_scale_at_the_images_size() -> None:
    cells = np.linspace(2, 60, 12 * 16, dtype=np.float32).reshape(12, 16)
    found = read(cells, Geometry(97, 71, 64, 48, (48, 64)))
    assert found.scale == 512.0  # 2 ** 9 * 80 is under 65536, 2 ** 10 * 80 is over
    assert found.values.shape == (71, 97)
    assert np.abs(pixels(found) / found.scale - found.values).max() <= 0.5 / 512


def test_values_are_interpolated_as_torch_does() -> None:
    torch = pytest.importorskip("torch", reason="the reference is not installed")
    cells = np.random.default_rng(0).uniform(1, 79, (12, 16)).astype(np.float32)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(cells)[None, None], (100, 133), mode="bilinear", align_corners=False
    )
    found = read(cells, Geometry(133, 100, 64, 48, (48, 64))).values
    np.testing.assert_allclose(found, wanted[0, 0].numpy(), atol=1e-3)


def test_padding_is_in_neither_the_pixels_nor_the_statistics() -> None:
    cells = np.full((16, 16), 70, np.float32)  # what lies on padding
    cells[:8] = 5.0
    cells[0, :8] = 3.0
    found = read(cells, Geometry(128, 60, 64, 32, (64, 64)))
    assert (found.values.max(), found.values.min()) == (5.0, 3.0)
    told = found.statistics()
    assert (told.least, told.most, told.median) == (3.0, 5.0, 5.0)
    assert told.mean == pytest.approx((8 * 3 + 120 * 5) / 128)
    assert told.percentiles == {5: 3.0, 25: 5.0, 75: 5.0, 95: 5.0}
    assert (pixels(found) / found.scale).max() == 5.0


def test_a_narrow_image_has_statistics_too() -> None:
    told = read(np.full((16, 16), 7, np.float32), Geometry(3, 4096, 1, 64, (64, 64))).statistics()
    assert (told.least, told.most) == (7.0, 7.0)


def test_what_is_out_of_range_or_no_number_is_cut_off() -> None:
    cells = np.array([[-3, 0.1, np.nan, np.inf], [-np.inf, 1e9, 0.5, 80]], np.float32)
    found = read(cells, Geometry(4, 2, 4, 2, (2, 4)))
    wanted = np.array([[0.5, 0.5, 0.5, 80], [0.5, 80, 0.5, 80]], np.float32)
    assert (found.values == wanted).all()
    assert pixels(found).min() == 256  # 0 is none


def test_large_maps_are_made_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = np.random.default_rng(1).uniform(1, 79, (12, 16)).astype(np.float32)
    found = read(cells, Geometry(97, 71, 64, 48, (48, 64)))
    whole = pixels(found)
    monkeypatch.setattr(values, "BAND_PIXELS", 97 * 5)
    assert (pixels(found) == whole).all()


@pytest.mark.parametrize(("most", "scale"), [(80.0, 512.0), (10.0, 4096.0), (65535.0, 1.0)])
def test_the_scale_leaves_room_for_the_largest_value(most: float, scale: float) -> None:
    found = Values(np.full((2, 2), most, np.float32), Geometry(2, 2, 2, 2, (2, 2)), "m", 0.0, most)
    assert found.scale == scale
    assert pixels(found).max() == round(most * scale)


def test_values_far_over_16_bits_have_a_scale_under_1() -> None:
    found = Values(np.full((2, 2), 1e6, np.float32), Geometry(2, 2, 2, 2, (2, 2)), "mm", 0.0, 1e6)
    assert found.scale == 1 / 16
    assert pixels(found).max() == 62500


def test_a_head_must_have_a_unit_a_range_and_one_plane() -> None:
    good = [TensorSpec("depth", "float32", ("batch", 12, 16))]
    task_of(HEAD).check((), good, "outputs")
    for wrong in (
        [],
        good * 2,
        [TensorSpec("disparity", "float32", ("batch", 12, 16))],
        [TensorSpec("depth", "float32", ("batch", 1, 12, 16))],
        [TensorSpec("depth", "float32", ("batch", "h", 16))],
    ):
        with pytest.raises(BundleError, match=r"^outputs: it must be depth"):
            task_of(HEAD).check((), wrong, "outputs")
    for task in (TASKS["depth"], Depth("m"), Depth(range=(1, 2))):
        with pytest.raises(BundleError, match=r"^unit, range: "):
            task.check((), good, "outputs")
    with pytest.raises(BundleError, match=r"^classes: a head of depth has none"):
        task_of(HEAD).check((ClassInfo("car", (1, 2, 3), True),), good, "outputs")


def test_gray_png_reads_back() -> None:
    map_ = np.arange(6, dtype=np.uint16).reshape(2, 3) * 10000
    assert (np.asarray(Image.open(io.BytesIO(png.gray(map_)))) == map_).all()
