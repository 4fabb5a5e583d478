import io
import itertools
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.support.photos import MEAN, STD, photo, saved
from visllama.errors import BadRecord, ConfigError
from visllama.images import decode as images
from visllama.images.decode import decode, open_image, read_image
from visllama.images.transform import ImageTransform


def outcome(content: bytes) -> str:
    """Say what becomes of a file: a reason of a bad record, or "picture". Anything else is raised."""
    try:
        pixels = decode(content)
    except BadRecord as error:
        return error.reason
    assert pixels.dtype == torch.uint8 and pixels.shape[0] == 3
    return "picture"


# ---------------------------------------------------------------------------------------------------------- to RGB


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "PA", "CMYK", "1", "I", "I;16", "YCbCr", "HSV"])
def test_every_mode_becomes_rgb(mode):
    gray = photo(40, 30, "L")
    image = Image.fromarray(np.array(gray).astype(np.uint16) * 257) if mode == "I;16" else None
    image = image or (photo(40, 30, "P").convert("PA") if mode == "PA" else photo(40, 30, mode))
    assert decode(image).shape == (3, 30, 40)
    assert ImageTransform(16, MEAN, STD)(image).shape == (3, 16, 16)
    opened = open_image(image)
    assert opened.mode == "RGB" and np.array_equal(np.asarray(opened), decode(image).permute(1, 2, 0))


def test_alpha_is_dropped_as_the_encoders_own_processors_do():
    image = photo(40, 30)
    image.putalpha(Image.linear_gradient("L").resize((40, 30)))
    for form in ("PNG", "WEBP"):
        content = saved(image, form, lossless=True, exact=True)
        assert np.array_equal(np.asarray(open_image(content)), np.asarray(image)[..., :3])


@pytest.mark.parametrize("transparency", [3, bytes(range(200))])
def test_a_palette_with_transparency_keeps_its_colours(transparency):
    image = photo(40, 30).quantize(200)
    content = saved(image, "PNG", transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(np.asarray(open_image(content)), np.asarray(image.convert("RGB")))


def test_16_bit_gray_is_scaled():
    """Its high byte; Pillow's own conversion has made all above 255 white."""
    array = np.linspace(0, 65535, 40 * 30).astype(np.uint16).reshape(30, 40)
    expected = np.repeat((array >> 8).astype(np.uint8)[..., None], 3, -1)
    for image in (saved(Image.fromarray(array), "PNG"), Image.fromarray(array.astype(np.int32))):
        assert np.array_equal(decode(image).permute(1, 2, 0), expected)


@pytest.mark.parametrize("transform_flag", [0, 2])
def test_four_channel_jpegs_become_rgb(transform_flag):
    """CMYK and YCCK, which Adobe's marker tells apart."""
    content = bytearray(saved(photo(40, 30, "CMYK")))
    content[content.index(b"Adobe") + 11] = transform_flag
    assert np.array_equal(
        np.asarray(open_image(bytes(content))), np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    )


@pytest.mark.parametrize("form", ["WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(form):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    content = saved(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)
    assert decode(content).amax((1, 2)).tolist() == [255, 0, 0]


# --------------------------------------------------------------------------------------------------------- upright


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_made_upright(form, orientation):
    """A photo taken with the camera on its side says so in its EXIF tag 274."""
    exif = Image.Exif()
    exif[274] = orientation
    content = saved(photo(40, 20), form, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert np.array_equal(decode(content).permute(1, 2, 0), expected)
    assert np.array_equal(np.asarray(open_image(Image.open(io.BytesIO(content)))), expected)


def test_a_tiff_that_pillow_opened_is_turned_once():
    """Pillow turns a TIFF's pixels as it loads them."""
    exif = Image.Exif()
    exif[274] = 6
    content = saved(photo(40, 20), "TIFF", exif=exif)
    expected = np.asarray(photo(40, 20).transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(decode(Image.open(io.BytesIO(content))).permute(1, 2, 0), expected)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
def test_exif_that_cannot_be_read_does_not_cost_the_picture(exif):
    content = saved(photo(40, 20), exif=exif)
    assert np.array_equal(np.asarray(open_image(content)), np.asarray(open_image(saved(photo(40, 20)))))


# ------------------------------------------------------------------------------------------------------- simplejpeg

needs_simplejpeg = pytest.mark.skipif(images.simplejpeg is None, reason="simplejpeg, the extra `fast`, is missing")


@needs_simplejpeg
@pytest.mark.parametrize("size", [(1, 1), (17, 33), (120, 90)])
def test_both_decoders_give_the_same_bits(monkeypatch, size):
    """Both are libjpeg-turbo, with the same inverse transform and the same way to spread the colours."""
    options = itertools.product(("RGB", "L"), (0, 1, 2), (30, 90, 100), (False, True))
    contents = [saved(photo(*size, m), quality=q, subsampling=s, progressive=p) for m, s, q, p in options]
    fast = [decode(content) for content in contents]
    monkeypatch.setattr(images, "simplejpeg", None)
    assert all(torch.equal(a, decode(content)) for a, content in zip(fast, contents, strict=True))


@needs_simplejpeg
def test_simplejpeg_decodes_what_it_can_and_leaves_the_rest_to_pillow(monkeypatch):
    exif = Image.Exif()
    exif[274] = 6
    contents = {
        "colour": saved(photo(40, 30)),
        "gray": saved(photo(40, 30, "L")),
        "turned": saved(photo(40, 30), exif=exif),
        "cmyk": saved(photo(40, 30, "CMYK")),
        "png": saved(photo(40, 30), "PNG"),
    }
    expected = {name: np.asarray(open_image(content)) for name, content in contents.items()}
    calls = []
    monkeypatch.setattr(images, "open_image", lambda image: calls.append(image) or open_image(image))
    for name, content in contents.items():
        assert np.array_equal(decode(content).permute(1, 2, 0), expected[name]), name
    assert calls == [contents[name] for name in ("turned", "cmyk", "png")]


@needs_simplejpeg
def test_an_error_of_simplejpeg_is_not_the_end(monkeypatch):
    content = saved(photo(40, 30))
    expected = decode(content)
    monkeypatch.setattr(images.simplejpeg, "decode_jpeg", lambda content: 1 / 0)
    assert torch.equal(decode(content), expected)


def test_pixels_lie_channels_last():
    """Torch's antialiased resize of uint8 is fastest so."""
    for content in (saved(photo(40, 30)), saved(photo(40, 30), "PNG")):
        assert decode(content).permute(1, 2, 0).is_contiguous()


# --------------------------------------------------------------------------------------------------- hostile content


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes, colours: int = 3, bits: int = 8) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def webp(kind: bytes, content: bytes) -> bytes:
    body = b"WEBP" + kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg(width: int, height: int, scans: int = 1) -> bytes:
    """Make a small progressive JPEG that says it is of this size, and repeat its last scan."""
    content = saved(Image.new("RGB", (64, 64)), progressive=True)
    at = content.index(b"\xff\xc2") + 5
    content = content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * scans + content[-2:]


def bombs() -> dict[str, tuple[bytes, str]]:
    """Make small files that would unpack to much, each with what should become of it."""
    squeeze = zlib.compressobj(1)
    zeros = b"".join([*(squeeze.compress(bytes(10**7)) for _ in range(30)), squeeze.flush()])  # 300 MB
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime")]
    animation = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    palette, side = chunk(b"PLTE", bytes(768)), 16383 - 1
    bits = chunk(b"IDAT", zlib.compress(bytes(8000 * 1001)))
    return {
        "gif": (b"GIF89a" + b"\xff" * 4 + bytes(34), "format"),
        "png_header": (png(60_000, 60_000, palette, chunk(b"IDAT", zeros)), "pixels"),
        "png_over_cap": (png(8000, 8000, palette, bits, bits=1), "pixels"),
        "png_side": (png(40_000_000, 1, palette, chunk(b"IDAT", zeros), bits=1), "pixels"),
        "png_ztxt": (png(8, 8, chunk(b"zTXt", b"a\0\0" + zeros), palette, bits), "image"),
        "png_itxt": (png(8, 8, chunk(b"iTXt", b"a\0\1\0\0\0" + zeros), palette, bits), "image"),
        "png_iccp": (png(8, 8, chunk(b"iCCP", b"a\0\0" + zeros), palette, bits), "image"),
        "png_idat": (png(8, 8, palette, chunk(b"IDAT", zeros)), "picture"),
        "png_palette": (png(8, 8, chunk(b"PLTE", bytes(3 * 10**7)), chunk(b"IDAT", zeros)), "image"),
        "webp_lossy": (webp(b"VP8 ", b"\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(64)), "pixels"),
        "webp_lossless": (webp(b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(64)), "pixels"),
        "webp_canvas": (webp(b"VP8X", bytes(4) + side.to_bytes(3, "little") * 2), "pixels"),
        "webp_animation": (animation[:24] + (9999).to_bytes(3, "little") * 2 + animation[30:], "pixels"),
        "jpeg_header": (jpeg(65_500, 65_500), "pixels"),
        "jpeg_scans": (jpeg(7000, 7000, scans=10_000), "pixels"),
    }


def test_bombs_are_refused_within_200_mb(tmp_path):
    """In a process of its own: by the kernel's count (VmHWM), which unlike `ru_maxrss` begins anew in it."""
    expected = {}
    for name, (content, reason) in bombs().items():
        (tmp_path / name).write_bytes(content)
        expected[name] = reason
    for name, size in {
        "wide": (20_000, 1),
        "tall": (1, 20_000),
        "longest": (65_535, 1),
        "highest": (1, 65_535),
    }.items():
        (tmp_path / name).write_bytes(saved(photo(*size), "PNG"))
        expected[name] = "picture"
    code = """
import sys, pathlib
import torch
from visllama.errors import BadRecord
from visllama.images.transform import ImageTransform
def peak():
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1000
transforms = [ImageTransform(224, (0.5,) * 3, (0.5,) * 3, fit) for fit in ("crop", "squash", "pad")]
before = peak()
for file in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    for transform in transforms:
        try:
            found = "picture" if transform(file.read_bytes()).shape == (3, 224, 224) else "shape"
        except BadRecord as error:
            found = error.reason
        print(file.name, found)
print("peak", peak() - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc, as Linux has it")
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = dict(line.split() for line in done.stdout.splitlines())
    peak_mb = float(found.pop("peak"))
    # Of a canvas without a frame Pillow before 13 reads no size.
    assert found.pop("webp_canvas") in ("pixels", "image") and expected.pop("webp_canvas")
    assert found == expected
    assert peak_mb < 200  # each of the compressed would be 300 MB, or far more


FOREIGN = {
    **{form: saved(photo(16, 16), form) for form in ("BMP", "TIFF", "ICO", "PPM", "GIF", "TGA", "PCX")},
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "PSD": b"8BPS\0\1" + bytes(30),
    "FITS": b"SIMPLE  =                    T" + bytes(80),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "RIFF": b"RIFF\0\0\0\0WAVEfmt ",
    "nothing": b"",
    "page": b"<html>404</html>",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_none_of_the_three_formats_is_refused(kind):
    """Whatever its file is called: only the three decoders ever see what comes from the web."""
    with pytest.raises(BadRecord, match="no JPEG, PNG or WebP"):
        decode(FOREIGN[kind])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_picture_is_bad_wherever_it_ends(form):
    content = saved(photo(64, 48), form)
    ends = {1, 4, 8, 12, 20, 30, *range(40, len(content) - 14, 37), *([len(content) - 2] if form == "JPEG" else [])}
    assert {outcome(content[:end]) for end in ends} == {"format", "image"}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_500_flipped_bytes_give_a_picture_or_a_bad_record(form):
    content, rng = saved(photo(64, 48), form), np.random.default_rng(0)
    outcomes = set()
    for _ in range(500):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= int(rng.integers(1, 256))
        outcomes.add(outcome(bytes(damaged)))
    assert outcomes <= {"picture", "format", "pixels", "image"} and "picture" in outcomes


def test_a_picture_that_pillow_opened_is_held_to_the_same(monkeypatch):
    with pytest.raises(BadRecord, match="image: "):
        decode(Image.open(io.BytesIO(saved(photo(64, 64))[:900])))
    with pytest.raises(BadRecord, match="image: "):
        decode(Image.new("RGB", (0, 4)))
    monkeypatch.setattr(images, "MAX_PIXELS", 99)
    with pytest.raises(BadRecord, match="pixels: 10x10; the most are 99 pixels"):
        decode(Image.new("RGB", (10, 10)))


def test_a_failed_allocation_is_a_bad_record(monkeypatch):
    content = saved(photo(40, 30, "L"), "PNG")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: bytes(2**62))
    with pytest.raises(BadRecord, match="image: MemoryError"):
        decode(content)


# ------------------------------------------------------------------------------------------------------------ files


def test_a_file_is_read_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "a.jpg").write_bytes(saved(photo(40, 20), exif=exif))
    for file in (tmp_path / "a.jpg", str(tmp_path / "a.jpg"), io.BytesIO((tmp_path / "a.jpg").read_bytes())):
        image = read_image(file, "a.jpg")
        assert image.size == (20, 40) and image.mode == "RGB"


@pytest.mark.parametrize("kind", ["GIF", "BMP"])
def test_a_file_may_be_of_a_kind_that_no_shard_holds(tmp_path, kind):
    photo(40, 20).save(tmp_path / "a", kind)
    assert read_image(tmp_path / "a", "a").size == (40, 20)
    with pytest.raises(BadRecord, match="no JPEG, PNG or WebP"):
        open_image((tmp_path / "a").read_bytes())


@pytest.mark.parametrize(
    "content",
    [b"", b"no picture", FOREIGN["GIF"][:40], b"BM" + bytes(60), b"\xff\xd8\xff\xe0 cut", png(60_000, 60_000)],
)
def test_what_is_no_picture_is_named(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.jpg: not to be read as JPEG, PNG, WEBP, GIF, BMP \(.+\): mend the file"):
        read_image(tmp_path / "a.jpg", "a.jpg")


def test_a_truncated_file_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(saved(photo(64, 64))[:600])
    with pytest.raises(ConfigError, match=r"[Tt]runcated"):
        read_image(tmp_path / "a.jpg", "a.jpg")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"a\.jpg: not to be read as JPEG, PNG, WEBP, GIF, BMP \(.*No such file"):
        read_image(tmp_path / "a.jpg", "a.jpg")
