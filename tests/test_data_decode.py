"""Pixels: parity with Pillow and transformers' rule, every colour mode, unreadable bytes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from pictures import encoded
from PIL import ExifTags, Image, ImageOps

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.decode import decode_image, read_rgb
from rmtllmf_jax.data.pixels import EIGHT_BITS, Stored, look_at
from rmtllmf_jax.models.processor import RESAMPLES

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 20, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "size", "resized", "box"),
    [
        # resized (width, height) and crop box by transformers' processor
        (20, 31, 8, (12, 8), (2, 0, 10, 8)),
        (31, 20, 8, (8, 12), (0, 2, 8, 10)),
        (20, 29, 8, (11, 8), (1, 0, 9, 8)),  # a width of 11.6 is cut, and a margin of 1.5 too
        (20, 33, 8, (13, 8), (2, 0, 10, 8)),  # so is one of 2.5
        (7, 9, 32, (41, 32), (4, 0, 36, 32)),
        (20, 20, 64, (64, 64), (0, 0, 64, 64)),
    ],
)
def test_resize_and_crop_are_pillows(
    height: int, width: int, size: int, resized: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    image = Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))
    expected = np.asarray(image.resize(resized, Image.Resampling.BICUBIC).crop(box))
    np.testing.assert_array_equal(decode_image(encoded(image), size, "here"), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_deep_grey_is_scaled_by_the_range_that_it_uses(bits: int, kind: str) -> None:
    most = 2**bits - 1
    deep = np.linspace(0, most, 400).round().astype(np.uint16).reshape(20, 20)
    data = encoded(Image.fromarray(deep), kind)
    expected = np.rint(deep * (255 / most)).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(data, 20, "here")[..., 1], expected)
    assert look_at(data) == Stored(0, 1, most)
    # Of a split with other images, its range counts.
    whole = decode_image(data, 20, "here", bits=16)[..., 1]
    np.testing.assert_array_equal(whole, np.rint(deep / 257).astype(np.uint8))


def turned(how: int, kind: str, mode: str = "RGB") -> bytes:
    """Return a file of `PIXELS` that EXIF says to turn."""
    image = Image.fromarray(PIXELS[:13]).convert(mode)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = how
    lossless = {"lossless": True} if kind == "WEBP" else {}
    return encoded(image, kind, exif=exif, **lossless)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("how", range(1, 9))
def test_images_are_set_upright(how: int, kind: str) -> None:
    data = turned(how, kind)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert upright.size == ((20, 13) if how < 5 else (13, 20))
    np.testing.assert_array_equal(np.asarray(read_rgb(data, "here")), np.asarray(upright))
    assert look_at(data).turned == (how > 1)


def test_turned_images_are_transformers_pipelines() -> None:
    image_utils = pytest.importorskip("transformers.image_utils")
    for how in range(1, 9):
        theirs = image_utils.load_image(Image.open(io.BytesIO(turned(how, "JPEG"))))
        ours = read_rgb(turned(how, "JPEG"), "here")
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_a_damaged_note_turns_nothing() -> None:
    data = turned(6, "JPEG")
    start = data.index(b"Exif\0\0") + 6
    damaged = data[:start] + b"\xff" * 8 + data[start + 8 :]
    np.testing.assert_array_equal(
        np.asarray(read_rgb(damaged, "here")), np.asarray(Image.open(io.BytesIO(data)))
    )
    assert look_at(damaged) == EIGHT_BITS


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return pixels over white, rounded to whole grey levels."""
    share = alpha / 255
    return pixels * share + 255 * (1 - share)


def test_what_is_transparent_lies_on_white() -> None:
    alpha = RNG.integers(0, 256, (20, 20, 1), dtype=np.uint8)
    alpha[:4], alpha[4:8] = 0, 255
    image = Image.fromarray(np.concatenate([PIXELS, alpha], axis=2))
    assert image.mode == "RGBA"
    decoded = decode_image(encoded(image), 20, "here")
    np.testing.assert_allclose(decoded, on_white(PIXELS, alpha), atol=0.51)
    np.testing.assert_array_equal(decoded[:4], 255)
    np.testing.assert_array_equal(decoded[4:8], PIXELS[4:8])


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(100, 108))])
def test_palette_colours_are_looked_up(transparency: int | bytes | None) -> None:
    palette = RNG.integers(0, 256, (8, 3), dtype=np.uint8)
    index = RNG.integers(0, 8, (20, 20), dtype=np.uint8)
    image = Image.fromarray(index).convert("P")
    image.putpalette(palette.tobytes())
    image.putdata(index.ravel().tolist())
    options = {} if transparency is None else {"transparency": transparency}
    alpha = np.full(8, 255)
    if transparency is not None:
        alpha[3] = 0
    if isinstance(transparency, bytes):
        alpha = np.frombuffer(transparency, np.uint8)
    decoded = decode_image(encoded(image, **options), 20, "h")
    expected = on_white(palette, alpha[:, None])[index]
    np.testing.assert_allclose(decoded, expected, atol=0 if transparency is None else 0.51)


def test_a_transparent_grey_of_sixteen_bits_lies_on_white() -> None:
    deep = PIXELS[..., 0].astype(np.uint16) * 257
    data = encoded(Image.fromarray(deep), transparency=int(deep[2, 3]))
    decoded = decode_image(data, 20, "here", bits=16)[..., 0]
    expected = np.where(deep == deep[2, 3], 255, PIXELS[..., 0])
    np.testing.assert_array_equal(decoded, expected)


def test_pixels_without_a_range_are_refused() -> None:
    image = Image.fromarray(PIXELS[..., 0].astype(np.float32))
    with pytest.raises(InputError, match=r"^here: .*'F' have no agreed range"):
        decode_image(encoded(image, "TIFF"), 20, "here")


PNG = encoded(Image.fromarray(PIXELS))
JPEG = encoded(Image.fromarray(PIXELS), "JPEG")


@pytest.mark.parametrize(
    "data",
    [b"", b"not an image", PNG[:60], PNG[: len(PNG) // 2], JPEG[: len(JPEG) // 2], PNG[:40]],
)
def test_unreadable_bytes_name_their_origin(data: bytes) -> None:
    with pytest.raises(InputError, match=r"^a\.parquet: row 3: not a") as caught:
        decode_image(data, 20, "a.parquet: row 3")
    assert "0x" not in str(caught.value)


def test_formats_that_run_programs_are_not_opened() -> None:
    with pytest.raises(InputError, match=r"known format \(PNG, JPEG"):
        decode_image(encoded(Image.fromarray(PIXELS), "EPS"), 20, "here")


def modes(height: int, width: int) -> dict[str, bytes]:
    """Return files of every colour mode that has a transparency, or none."""
    random = np.random.default_rng(width)
    colours = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    grey = Image.fromarray(random.integers(0, 256, (height, width), dtype=np.uint8))
    both, shades, palette = colours.copy(), grey.copy(), colours.quantize(16)
    both.putalpha(grey)
    shades.putalpha(colours.convert("L"))
    return {
        "RGB": encoded(colours),
        "RGB in JPEG": encoded(colours, "JPEG"),
        "RGBA": encoded(both),
        "RGBA in WebP": encoded(both, "WEBP", lossless=True, exact=True),
        "LA": encoded(shades),
        "L": encoded(grey),
        "L, one value": encoded(grey, transparency=77),
        "RGB, one colour": encoded(colours, transparency=colours.getpixel((0, 0))),
        "1": encoded(grey.convert("1")),
        "P": encoded(palette),
        "P, one colour": encoded(palette, transparency=3),
        "P, many": encoded(palette, transparency=bytes(range(100, 116))),
        "GIF": encoded(palette, "GIF", transparency=5),
        "CMYK": encoded(colours.convert("CMYK"), "JPEG"),
    }


SHAPES = [
    *((28, 28), (31, 50), (300, 200), (200, 301), (333, 500), (64, 1000), (480, 640)),
    *((40, 57), (224, 224), (224, 227), (229, 224), (37, 91), (91, 37), (7, 5)),
]


def parity(shape: tuple[int, int], side: int, mode: str, **options: Any) -> None:
    """Compare with transformers' processor; `options` are its own."""
    transformers = pytest.importorskip("transformers")
    data = modes(*shape)[mode]
    processor = transformers.CLIPImageProcessorPil(do_rescale=False, do_normalize=False, **options)
    theirs = processor(Image.open(io.BytesIO(data)))["pixel_values"][0].transpose(1, 2, 0)
    fit = "squash" if isinstance(options["size"], dict) and "height" in options["size"] else "crop"
    resized = options["size"]
    resized = next(iter(resized.values())) if isinstance(resized, dict) else resized
    how = fit, RESAMPLES[options.get("resample", 3)]
    ours = decode_image(data, side, "here", *how, resize_to=None if resized == side else resized)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("size", [33, 224])
@pytest.mark.parametrize("shape", SHAPES)
def test_crop_and_squash_are_transformers(shape: tuple[int, int], size: int) -> None:
    parity(shape, size, "RGB", size={"shortest_edge": size}, crop_size=size)
    parity(shape, size, "RGB", size={"height": size, "width": size}, do_center_crop=False)


@pytest.mark.parametrize("shape", [(37, 91), (91, 37), (7, 5)])
@pytest.mark.parametrize("mode", modes(1, 1))
def test_every_mode_is_transformers(shape: tuple[int, int], mode: str) -> None:
    parity(shape, 33, mode, size=33, crop_size=33, resample=2)


@pytest.mark.parametrize("resample", range(len(RESAMPLES)), ids=RESAMPLES)
@pytest.mark.parametrize("shape", [(37, 91), (91, 37), (300, 200)])
def test_every_filter_is_transformers(shape: tuple[int, int], resample: int) -> None:
    parity(shape, 33, "RGB", size=33, crop_size=33, resample=resample)
    both = {"height": 33, "width": 33}
    parity(shape, 33, "RGB", size=both, do_center_crop=False, resample=resample)


@pytest.mark.parametrize(("resized", "size"), [(256, 224), (40, 33), (37, 33)])
@pytest.mark.parametrize("shape", [(37, 91), (91, 37), (300, 200)])
def test_a_centre_smaller_than_the_image_is_transformers(
    shape: tuple[int, int], resized: int, size: int
) -> None:
    parity(shape, size, "RGBA", size={"shortest_edge": resized}, crop_size=size)
    parity(shape, size, "RGB", size={"height": resized, "width": resized}, crop_size=size)


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_arrays_give_the_pixels_of_their_files(fit: Any) -> None:
    colour = RNG.integers(0, 256, (13, 21, 3), dtype=np.uint8)
    grey = np.ascontiguousarray(colour[..., 0])
    from_file = decode_image(encoded(Image.fromarray(colour)), 8, "here", fit)
    np.testing.assert_array_equal(decode_image(colour, 8, "here", fit), from_file)
    np.testing.assert_array_equal(decode_image(colour[::-1][::-1], 8, "here", fit), from_file)
    from_file = decode_image(encoded(Image.fromarray(grey)), 8, "here", fit)
    for same in (grey, grey[..., None], colour[..., 0]):
        np.testing.assert_array_equal(decode_image(same, 8, "here", fit), from_file)
    for bits in (10, 16):
        deep = grey.astype(np.uint16) << (bits - 8)
        file = encoded(Image.fromarray(deep))
        for said in (None, 12):
            from_file = decode_image(file, 8, "here", fit, bits=said)
            for same in (deep, deep[..., None]):
                found = decode_image(same, 8, "here", fit, bits=said)
                np.testing.assert_array_equal(found, from_file)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((16,), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.uint16),  # of which nobody says how bright it is
        np.zeros((0, 4), np.uint16),
        np.zeros((4, 4), np.int16),
    ],
)
def test_arrays_that_are_no_image(pixels: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"^there: expected uint8 pixels .* got \w+\d+ \("):
        decode_image(pixels, 8, "there")


def test_a_strip_too_long_to_resize_is_an_error_of_its_image() -> None:
    strip = np.zeros((1, 200_000), np.uint8)
    with pytest.raises(InputError, match=r"^strip: cannot be resized to 100000 pixels"):
        decode_image(strip, 100_000, "strip")
