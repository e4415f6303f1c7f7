from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celeriac.errors import DecodeError, ImproperlyConfigured, MissingExtra
from celeriac.wire.compression import compress, decompress

NAMES = {
    "gzip": "application/x-gzip",
    "zlib": "application/x-gzip",
    "bzip2": "application/x-bz2",
    "bzip": "application/x-bz2",
    "lzma": "application/x-lzma",
    "xz": "application/x-lzma",
    "brotli": "application/x-brotli",
    "zstd": "application/zstd",
    "zstandard": "application/zstd",
}
MIMES = sorted(set(NAMES.values()))
DATA = b"the same again and again, " * 40


@pytest.mark.parametrize(("name", "mime"), NAMES.items())
def test_names_and_aliases_lead_to_celerys_mime_names(name: str, mime: str):
    data, got = compress(DATA, name)
    assert got == mime
    assert len(data) < len(DATA)
    assert decompress(data, mime) == decompress(data, name) == DATA


@pytest.mark.parametrize(
    ("mime", "start"),
    [
        ("application/x-gzip", b"\x78\x9c"),  # a zlib stream, whatever its name says
        ("application/x-bz2", b"BZh"),
        ("application/x-lzma", b"\xfd7zXZ"),
        ("application/zstd", b"\x28\xb5\x2f\xfd"),
    ],
)
def test_formats_are_celerys(mime: str, start: bytes):
    assert compress(DATA, mime)[0].startswith(start)


@settings(deadline=None)
@given(st.binary(), st.sampled_from(MIMES))
def test_what_was_compressed_comes_back(data: bytes, mime: str):
    assert decompress(compress(data, mime)[0], mime) == data


@pytest.mark.parametrize("mime", MIMES)
def test_damaged_data_is_a_decode_error(mime: str):
    whole, _ = compress(DATA, mime)
    for damaged in (b"garbage", whole[:-5], whole[: len(whole) // 2]):
        with pytest.raises(DecodeError, match=f"damaged {mime} data"):
            decompress(damaged, mime)


def test_zstd_frames_need_not_tell_their_size():
    import zstandard

    stream = zstandard.ZstdCompressor().compressobj()
    data = stream.compress(DATA) + stream.flush()
    assert decompress(data, "zstd") == DATA


def test_unknown_names_are_the_senders_mistake_and_bad_data_at_the_receiver():
    with pytest.raises(ImproperlyConfigured, match=r"unknown compression 'rar'; known are .*gzip"):
        compress(DATA, "rar")
    with pytest.raises(DecodeError, match="unknown compression 'rar'"):
        decompress(DATA, "rar")


@pytest.mark.parametrize(
    ("name", "module", "extra"), [("brotli", "brotli", "brotli"), ("zstd", "zstandard", "zstd")]
)
def test_a_missing_library_is_named_with_its_extra(
    name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
):
    data, mime = compress(DATA, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"celeriac\[{extra}\]"):
        compress(DATA, name)
    with pytest.raises(MissingExtra, match=rf"celeriac\[{extra}\]"):
        decompress(data, mime)
