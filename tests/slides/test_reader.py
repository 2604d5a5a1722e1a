"""Readers: the same pixels through any window, resolution from the file, damage as one sentence."""

import threading

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from whole_slide_cnn.errors import SlideError
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides import image_reader, openslide_reader
from whole_slide_cnn.slides import reader as reader_module
from whole_slide_cnn.slides.block_cache import BlockCache
from whole_slide_cnn.slides.reader import ImageReader, OpenSlideReader, open_slide
from whole_slide_cnn.slides.resolution import mpp_from_tiff_tags, plausible_mpp


@pytest.fixture(scope="module")
def odd_pyramid(tmp_path_factory, photograph, write_tiff):
    """A pyramid whose downsamples are no whole numbers: path, and the arrays of the levels."""
    levels = [photograph(1303, 1101, 1), photograph(651, 550, 2), photograph(217, 183, 3)]
    return write_tiff(tmp_path_factory.mktemp("reader") / "odd.tif", levels, mpp=0.25), levels


def test_openslide_levels_sizes_and_resolution(odd_pyramid):
    path, levels = odd_pyramid
    with open_slide(path) as slide:
        assert isinstance(slide, OpenSlideReader)
        assert slide.name == "odd.tif"
        assert slide.level_sizes == (Size(1303, 1101), Size(651, 550), Size(217, 183))
        assert slide.level_downsamples[1] == (1303 / 651, 1101 / 550)
        assert slide.mpp == pytest.approx((0.25, 0.25))
        np.testing.assert_array_equal(slide.read_level(0, Window(0, 0, 1303, 1101)), levels[0])


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20, 32 << 20])
def test_any_window_of_any_level_is_a_crop_of_the_level(odd_pyramid, cache_bytes):
    with open_slide(odd_pyramid[0], cache_bytes=cache_bytes) as slide:
        random = np.random.RandomState(0)
        for level, size in enumerate(slide.level_sizes):
            whole = slide.read_level(level, Window(0, 0, *size))
            for _ in range(12):
                top, left = random.randint(size.height), random.randint(size.width)
                window = Window(
                    top, left, random.randint(1, size.height - top + 1), random.randint(1, size.width - left + 1)
                )
                expected = whole[window.top : window.bottom, window.left : window.right]
                np.testing.assert_array_equal(slide.read_level(level, window), expected)


def test_openslide_itself_does_not_keep_pixels_in_place(odd_pyramid):
    """The reason for reading in fixed blocks: should this fail one day, they could go."""
    slide = openslide.OpenSlide(odd_pyramid[0])
    whole = np.asarray(slide.read_region((0, 0), 2, (183, 217)))
    location = tuple(int(round(101 * slide.level_downsamples[2])) for _ in range(2))
    assert (np.asarray(slide.read_region(location, 2, (80, 80))) != whole[101:181, 101:181]).any()


def test_blocks_are_decoded_once_while_the_cache_holds_them(odd_pyramid, monkeypatch):
    with open_slide(odd_pyramid[0]) as slide:
        decoded = []
        decode = slide._decode
        monkeypatch.setattr(slide, "_decode", lambda *block: decoded.append(block) or decode(*block))
        for _ in range(3):
            slide.read_level(0, Window(500, 500, 100, 100))
        assert sorted(decoded) == [(0, 0, 0), (0, 0, 512), (0, 512, 0), (0, 512, 512)]


def test_threads_read_the_same_pixels(odd_pyramid):
    path, levels = odd_pyramid
    wrong = []

    def read(slide, seed):
        random = np.random.RandomState(seed)
        for _ in range(20):
            top, left = random.randint(1000), random.randint(800)
            pixels = slide.read_level(0, Window(top, left, 300, 300))
            if (pixels != levels[0][top : top + 300, left : left + 300]).any():
                wrong.append((top, left))

    with open_slide(path, cache_bytes=2 << 20) as slide:
        threads = [threading.Thread(target=read, args=(slide, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_windows_outside_unknown_levels_and_closed_readers_are_refused(odd_pyramid):
    slide = open_slide(odd_pyramid[0])
    with pytest.raises(ValueError, match="leaves"):
        slide.read_level(0, Window(0, 0, 1304, 10))
    with pytest.raises(ValueError, match="leaves"):
        slide.read_level(0, Window(-1, 0, 10, 10))
    with pytest.raises(ValueError, match="no level 3"):
        slide.read_level(3, Window(0, 0, 1, 1))
    slide.close()
    slide.close()
    with pytest.raises(ValueError, match="closed"):
        slide.read_level(0, Window(0, 0, 1, 1))


def test_transparent_pixels_become_white():
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], np.uint8)
    np.testing.assert_array_equal(openslide_reader.over_white(rgba), [[[10, 20, 30], [255] * 3, [127] * 3]])
    opaque = np.full((2, 2, 4), 255, np.uint8)
    assert openslide_reader.over_white(opaque).shape == (2, 2, 3)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 50)), max_size=60), st.integers(0, 120))
def test_block_cache_never_exceeds_its_limit(puts, limit):
    cache = BlockCache(limit)
    for key, size in puts:
        cache.put(key, np.full(size, key, np.uint8))
        assert cache.held_bytes <= limit
        found = cache.get(key)
        assert (found is not None) == (size <= limit)
    held = [cache.get(key) for key in range(10)]
    assert sum(block.nbytes for block in held if block is not None) == cache.held_bytes


def test_block_cache_drops_what_was_used_longest_ago():
    cache = BlockCache(3)
    for key in "abc":
        cache.put(key, np.zeros(1, np.uint8))
    cache.get("a")
    cache.put("d", np.zeros(1, np.uint8))
    assert [cache.get(key) is not None for key in "abcd"] == [True, False, True, True]


def test_resolution_of_tiff_tags():
    assert mpp_from_tiff_tags("20000", "40000", "centimeter") == (0.5, 0.25)
    assert mpp_from_tiff_tags(50800, 50800, "inch") == (0.5, 0.5)
    for tags in [(72, 72, "inch"), (0, 0, "inch"), ("x", 1, "inch"), (20000, 20000, "none"), (None, None, "inch")]:
        assert mpp_from_tiff_tags(*tags) is None
    assert plausible_mpp("0.499", "0.5") == (0.499, 0.5)
    for stated in [(0, 0.5), ("nan", "nan"), (None, 0.5), (0.5, 1e9), ("", "")]:
        assert plausible_mpp(*stated) is None


@pytest.mark.parametrize("suffix", ["png", "bmp", "jpg"])
def test_plain_images(tmp_path, photograph, suffix):
    path, pixels = str(tmp_path / ("image." + suffix)), photograph(61, 83)
    Image.fromarray(pixels).save(path, dpi=(50800, 50800))
    with open_slide(path) as slide:
        assert isinstance(slide, ImageReader)
        assert slide.level_sizes == (Size(61, 83),)
        assert slide.mpp is None  # dots per inch of such a file are no resolution of tissue
        expected = np.asarray(Image.open(path).convert("RGB"))
        np.testing.assert_array_equal(slide.read_level(0, Window(5, 7, 50, 70)), expected[5:55, 7:77])


def test_transparent_and_grey_images(tmp_path):
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[:, 3:] = (200, 100, 50, 255)
    Image.fromarray(rgba).save(str(tmp_path / "a.png"))
    with open_slide(str(tmp_path / "a.png")) as slide:
        pixels = slide.read_level(0, Window(0, 0, 4, 6))
        assert (pixels[:, :3] == 255).all() and (pixels[:, 3:] == (200, 100, 50)).all()
    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).save(str(tmp_path / "g.png"))
    with open_slide(str(tmp_path / "g.png")) as slide:
        assert slide.read_level(0, Window(3, 5, 1, 1)).tolist() == [[[23, 23, 23]]]


@pytest.mark.parametrize("compression, mapped", [(None, True), ("deflate", False)])
def test_tiff_without_tiles(tmp_path, photograph, write_tiff, compression, mapped):
    pixels = photograph(90, 70)
    path = write_tiff(tmp_path / "strips.tif", [pixels], mpp=0.5, tile=None, compression=compression)
    with open_slide(path) as slide:
        assert isinstance(slide, ImageReader)
        assert isinstance(slide._pixels, np.memmap) == mapped
        assert slide.mpp == pytest.approx((0.5, 0.5))
        np.testing.assert_array_equal(slide.read_level(0, Window(11, 13, 60, 50)), pixels[11:71, 13:63])


def test_grey_tiff_is_mapped(tmp_path):
    pixels = np.arange(30, dtype=np.uint8).reshape(5, 6)
    tifffile.imwrite(str(tmp_path / "grey.tif"), pixels, photometric="minisblack")
    with open_slide(str(tmp_path / "grey.tif")) as slide:
        assert slide.read_level(0, Window(4, 5, 1, 1)).tolist() == [[[29, 29, 29]]]


def test_images_too_large_to_decode_are_refused_with_a_remedy(tmp_path, monkeypatch):
    path = str(tmp_path / "large.png")
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(path)
    monkeypatch.setattr(image_reader, "MAX_DECODED_PIXELS", 1999)
    with pytest.raises(SlideError, match="slide S: .*vips tiffsave"):
        open_slide(path, "S")
    monkeypatch.setattr(image_reader, "MAX_DECODED_PIXELS", 2000)
    open_slide(path, "S").close()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)  # Pillow's own refusal starts at twice as many
    with pytest.raises(SlideError, match="vips tiffsave"):
        open_slide(path, "S")


def test_sixteen_bit_images_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(str(tmp_path / "deep.png"))
    with pytest.raises(SlideError, match="8 bits"):
        open_slide(str(tmp_path / "deep.png"))


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(SlideError, match="slide S: there is no file"):
        open_slide(str(tmp_path / "absent.svs"), "S")
    (tmp_path / "text.svs").write_text("no slide at all")
    for reader in ("auto", "openslide", "image"):
        with pytest.raises(SlideError, match="slide text.svs: .*text.svs"):
            open_slide(str(tmp_path / "text.svs"), reader=reader)
    with pytest.raises(ValueError, match="reader must be one of"):
        open_slide(str(tmp_path / "text.svs"), reader="magic")


def test_without_openslide_the_message_says_so(tmp_path, monkeypatch, photograph):
    for module in (reader_module, openslide_reader):
        monkeypatch.setattr(module, "load_openslide", lambda: None)
    (tmp_path / "text.svs").write_text("no slide at all")
    with pytest.raises(SlideError, match="OpenSlide is not installed"):
        open_slide(str(tmp_path / "text.svs"))
    with pytest.raises(SlideError, match="install openslide-python"):
        open_slide(str(tmp_path / "text.svs"), reader="openslide")
    Image.fromarray(photograph(5, 5)).save(str(tmp_path / "a.png"))
    open_slide(str(tmp_path / "a.png")).close()


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["pyramid", "mapped", "png"])
def test_truncated_files_are_slide_errors(tmp_path, photograph, write_tiff, kind, share):
    path = str(tmp_path / ("whole." + ("png" if kind == "png" else "tif")))
    if kind == "pyramid":
        write_tiff(path, [photograph(1200, 1200, 1), photograph(600, 600, 2)])
    elif kind == "mapped":
        write_tiff(path, [photograph(300, 300)], tile=None, compression=None)
    else:
        Image.fromarray(photograph(300, 300)).save(path)
    with open(path, "rb") as stream:
        data = stream.read()
    with open(path, "wb") as stream:
        stream.write(data[: int(len(data) * share)])
    with pytest.raises(SlideError, match="slide S: "), open_slide(path, "S") as slide:
        for level, size in enumerate(slide.level_sizes):
            slide.read_level(level, Window(0, 0, *size))


def test_a_damaged_tile_is_found_when_read_and_every_time(tmp_path, photograph, write_tiff):
    path = write_tiff(tmp_path / "damaged.tif", [photograph(1200, 1200)])
    with tifffile.TiffFile(path) as tiff:
        offset, length = tiff.pages[0].dataoffsets[4], tiff.pages[0].databytecounts[4]
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * length)
    with open_slide(path, "S") as slide:
        for _ in range(2):
            with pytest.raises(SlideError, match="slide S: level 0 cannot be read .*corrupt or truncated"):
                slide.read_level(0, Window(512, 512, 512, 512))


def test_real_slide(real_slide):
    with open_slide(real_slide) as slide:
        assert slide.level_sizes == (Size(2967, 2220),)
        assert slide.mpp == (0.499, 0.499)
        whole = slide.read_level(0, Window(0, 0, 2967, 2220))
        np.testing.assert_array_equal(slide.read_level(0, Window(1023, 511, 700, 700)), whole[1023:1723, 511:1211])
