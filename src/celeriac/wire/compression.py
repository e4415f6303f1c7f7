"""Compressed bodies, under the MIME names that Celery puts into the ``compression`` header (wire-protocol §2)."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from celeriac.errors import DecodeError, ImproperlyConfigured
from celeriac.wire.codecs import optional

__all__ = ["compress", "decompress"]


class _Compression(NamedTuple):
    mime: str
    aliases: tuple[str, ...]
    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes], bytes]


def compress(data: bytes, name: str) -> tuple[bytes, str]:
    """Compress `data`; returns it with the MIME name for the header. `name`: an alias (``"gzip"``) or MIME name.

    Raises `ImproperlyConfigured` for an unknown name and `MissingExtra` where the library is not installed.
    """
    method = _METHODS.get(name)
    if method is None:
        raise ImproperlyConfigured(f"unknown compression {name!r}; known are {', '.join(sorted(_METHODS))}")
    return method.compress(data), method.mime


def decompress(data: bytes, mime: str) -> bytes:
    """Undo `compress`; `mime` may be an alias, too.

    Raises `DecodeError` where the compression is unknown or the data damaged.
    """
    method = _METHODS.get(mime)
    if method is None:
        raise DecodeError(f"unknown compression {mime!r}; known are {', '.join(sorted(_METHODS))}")
    try:
        return method.decompress(data)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as exc:
        raise DecodeError(f"damaged {mime} data: {exc}") from exc


def _brotli() -> Any:
    return optional("brotli", extra="brotli", purpose="brotli compression")


def _compress_brotli(data: bytes) -> bytes:
    return _brotli().compress(data)


def _decompress_brotli(data: bytes) -> bytes:
    brotli = _brotli()
    try:
        return brotli.decompress(data)
    except brotli.error as exc:
        raise ValueError(str(exc)) from exc


def _zstandard() -> Any:
    return optional("zstandard", extra="zstd", purpose="zstd compression")


def _compress_zstd(data: bytes) -> bytes:
    return _zstandard().ZstdCompressor().compress(data)


def _decompress_zstd(data: bytes) -> bytes:
    zstandard = _zstandard()
    # The streaming face also reads frames that do not tell their size; it does not mind a missing end.
    stream = zstandard.ZstdDecompressor().decompressobj()
    try:
        whole: bytes = stream.decompress(data)
    except zstandard.ZstdError as exc:
        raise ValueError(str(exc)) from exc
    if not stream.eof:
        raise EOFError("the end is missing")
    return whole


_METHODS = {
    name: method
    for method in (
        # Celery says gzip and means a zlib stream.
        _Compression("application/x-gzip", ("gzip", "zlib"), zlib.compress, zlib.decompress),
        _Compression("application/x-bz2", ("bzip2", "bzip"), bz2.compress, bz2.decompress),
        _Compression("application/x-lzma", ("lzma", "xz"), lzma.compress, lzma.decompress),
        _Compression("application/x-brotli", ("brotli",), _compress_brotli, _decompress_brotli),
        _Compression("application/zstd", ("zstd", "zstandard"), _compress_zstd, _decompress_zstd),
    )
    for name in (method.mime, *method.aliases)
}
