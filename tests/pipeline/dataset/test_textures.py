"""The textures: any size, in range, each label's its own."""

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.dataset.noise import Stream, noise, ramp
from pipeline.dataset.textures import NAMED, generic


@pytest.mark.parametrize("label", NAMED)
@pytest.mark.parametrize("size", [(200, 420), (420, 200), (201, 333)])
def test_every_kind_fills_any_frame(label: str, size: tuple[int, int]) -> None:
    for number in range(6):
        picture = NAMED[label](Stream(f"{label}{number}"), *size)
        assert (picture.shape, picture.dtype) == ((*size, 3), np.float32)
        assert np.isfinite(picture).all()
        assert -0.1 <= picture.min() < picture.max() <= 1.3
        assert picture.std() > 0.02  # something is to be seen


def test_every_generic_label_looks_like_itself_and_no_other() -> None:
    def look(index: int, name: str) -> npt.NDArray[np.float64]:
        pixels = generic(index)(Stream(name), 256, 256).astype(float)
        color = pixels.mean((0, 1)) / pixels.mean()
        gray = pixels.mean(2)
        spectrum = (
            np.log1p(np.abs(np.fft.rfft2(gray - gray.mean()))[:64, :64]).reshape(16, 4, 16, 4).mean((1, 3)).ravel()
        )
        return np.concatenate([color * 3, spectrum / spectrum.std() / 8])

    first = np.array([look(index, "a") for index in range(40)])
    second = np.array([look(index, "b") for index in range(40)])
    nearest = np.linalg.norm(second[:, None] - first[None], axis=-1).argmin(1)
    assert (nearest == np.arange(40)).mean() >= 0.9


def test_streams_repeat_and_differ() -> None:
    assert np.array_equal(Stream("a").grid(5, 7), Stream("a").grid(5, 7))
    assert not np.array_equal(Stream("a").grid(5, 7), Stream("b").grid(5, 7))
    numbers = [Stream(str(i)).integer(2, 4) for i in range(100)]
    assert set(numbers) == {2, 3, 4}


def test_noise_is_smooth_at_its_cell_size() -> None:
    field = noise(Stream("n"), 100, 120, 20, 5)
    assert field.shape == (100, 120)
    assert 0 <= field.min() < field.max() < 1
    assert np.abs(np.diff(field, axis=0)).max() < 1.5 / 20 + 1e-3  # smoothstep is at most 1.5 times as steep
    assert np.abs(np.diff(field, axis=1)).max() < 1.5 / 5 + 1e-3


def test_ramp_passes_through_its_colours() -> None:
    colors = ((0, 0, 0), (255, 0, 0), (255, 255, 255))
    assert ramp(np.asarray([0, 0.5, 1, 2], np.float32), colors) == pytest.approx(
        np.array([(0, 0, 0), (1, 0, 0), (1, 1, 1), (1, 1, 1)]), abs=2 / 1023
    )
