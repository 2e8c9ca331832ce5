"""People without their names: salted hashes, redacted file names, shifted dates. Imports no torch.

A salted hash hides an id from whoever lacks the salt; with the salt, a list of ids can be tried. It does not make the data
anonymous: the embedding of a biosignal tells its person among hundreds, and so may that of an image.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from mc_core.errors import DataError
from mc_core.files import write_atomic

_WEEK = 7 * 86400.0
_MOST_WEEKS = 260


class Salt:
    """A random secret, kept in a file beside a store or run and not in it: that may be passed on, the salt need not.

    Args:
        secret: at least 16 bytes.

    >>> Salt(b"0123456789abcdef").key("participant", "P 17")
    '76ea653e95a3aa25'
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @property
    def secret(self) -> bytes:
        """As given, or as read from the file."""
        return self._secret

    @classmethod
    def beside(cls, store: Path, *, create: bool = False) -> Salt:
        """The salt of a store or run, from ``STORE.salt``.

        Raises:
            DataError: it is missing or damaged.
        """
        path = salt_path(store)
        if create and not path.exists():
            write_atomic(path, secrets.token_hex(32) + "\n")
            path.chmod(0o600)
        try:
            secret = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except FileNotFoundError:
            raise DataError(f"{path} is missing: without the salt of the store, raw ids cannot be matched") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is no salt ({error}); restore it from a copy") from error
        if len(secret) < 16:
            raise DataError(f"{path} holds {len(secret)} bytes, a salt has at least 16; restore it from a copy")
        return cls(secret)

    def key(self, purpose: str, text: str) -> str:
        """64 bits of HMAC-SHA-256 in hexadecimal; another purpose gives another key."""
        return hmac.new(self._secret, f"{purpose}\0{text}".encode("utf-8", "surrogateescape"), "sha256").hexdigest()[
            :16
        ]

    def number(self, purpose: str, raw: object) -> int:
        """The key of a raw id as a whole number from 0 to 2⁶³ − 1, for arrays; 17, 17.0 and " 17 " are the same.

        >>> Salt(b"0123456789abcdef").number("patient", 17.0)
        4637766331497925236
        """
        return int(self.key(purpose, plain_id(raw)), 16) >> 1

    def participant(self, raw: object) -> str:
        """The key of a raw id; 17, 17.0 and " 17 " are the same person."""
        return self.key("participant", plain_id(raw))

    def shift(self, raw: object) -> float:
        """Seconds by which a participant's times move: a whole number of weeks, so that hours and weekdays stay."""
        draw = int(self.key("shift", plain_id(raw)), 16)
        return _WEEK * (draw % (2 * _MOST_WEEKS + 1) - _MOST_WEEKS)


def salt_path(store: Path) -> Path:
    """``STORE.salt`` beside the folder ``STORE``, of a store or a run."""
    return store.parent / f"{store.resolve().name}.salt"


def plain_id(raw: object) -> str:
    """
    >>> plain_id(17.0), plain_id(" a "), plain_id("017")
    ('17', 'a', '017')
    """
    return str(int(raw)) if isinstance(raw, float) and raw.is_integer() else str(raw).strip()


def redact(name: str, raw_ids: Iterable[str], salt: Salt) -> str:
    """A file name in which each raw id became its key, unless it is only part of a longer word or number.

    >>> redact("Person_01/rec_1.hea", ["Person_01"], Salt(b"0123456789abcdef"))
    '028341f676e3f142/rec_1.hea'
    >>> redact("s1_10.csv", ["1"], Salt(b"0123456789abcdef")).endswith("_10.csv")
    True
    """
    whole = [
        rf"(?<!{_same(raw[0])}){re.escape(raw)}(?!{_same(raw[-1])})"
        for raw in sorted(set(raw_ids), key=len, reverse=True)
        if raw
    ]
    # in one pass: a key may itself hold what looks like another id
    return re.sub("|".join(whole), lambda found: salt.participant(found[0]), name) if whole else name


def _same(character: str) -> str:
    return "[0-9]" if character.isdigit() else "[A-Za-z]"
