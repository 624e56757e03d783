"""Tokens to ids and back."""

import gzip
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from rnnjax._checks import is_unicode
from rnnjax._whole_files import written_whole
from rnnjax.data._text_files import decoded
from rnnjax.data.errors import DataError, check_count, check_integer

PADDING = 0
UNKNOWN = 1

_SPECIALS = ("<pad>", "<unk>")
_FORMAT = "rnnjax-vocabulary"
_VERSION = 1
_SHOWN = 8  # tokens in a repr


@dataclass(frozen=True, repr=False)
class Vocabulary:
    """An immutable table of tokens whose position is their id.

    Id 0 is padding and id 1 the unknown token. No text can reach them by spelling them out: a text
    token ``"<pad>"`` or ``"<unk>"`` is never learned and encodes to the unknown id.

    Attributes:
        tokens: all tokens, ``"<pad>"`` and ``"<unk>"`` first, without repeats.

    Raises:
        DataError: if the tokens do not begin with the two special ones, repeat, or are not strings.

    Example:
        >>> vocabulary = Vocabulary.fit([["a", "good", "film"], ["a", "bad", "film"]])
        >>> vocabulary.tokens
        ('<pad>', '<unk>', 'film', 'a', 'good', 'bad')
        >>> vocabulary.encode(["a", "strange", "film"])
        [3, 1, 2]
    """

    tokens: tuple[str, ...]

    def __post_init__(self) -> None:
        # The class is frozen, so that its field is set around it.
        object.__setattr__(self, "tokens", tuple(_strings(self.tokens)))
        if self.tokens[:2] != _SPECIALS:
            raise DataError(f"tokens must have {_SPECIALS} first, got {self.tokens[:2]}")
        if len(set(self.tokens)) != len(self.tokens):
            repeated = [token for token, count in Counter(self.tokens).items() if count > 1]
            raise DataError(f"tokens must have no repeats, got {repeated[:3]} more than once")

    @classmethod
    def fit(
        cls,
        token_lists: Iterable[Sequence[str]],
        *,
        max_size: int | None = None,
        min_count: int = 1,
    ) -> "Vocabulary":
        """Learn a vocabulary from tokenized texts.

        Tokens are ordered by count, the most frequent first, and equal counts by the token itself,
        from high to low. This is the order of Keras ``TextVectorization``, so the ids are its ids.

        Args:
            token_lists: the tokens of each text.
            max_size: the greatest size, the two special tokens included (Keras ``max_tokens``).
            min_count: the count below which a token is left out.

        Returns:
            The vocabulary; the two special tokens alone if nothing else is left.

        Raises:
            DataError: for no lists of tokens, a string in place of one, a token that is no string,
                ``max_size < 2`` or ``min_count < 1``.

        Example:
            >>> Vocabulary.fit([["b", "a", "b"], ["c"]], max_size=4).tokens
            ('<pad>', '<unk>', 'b', 'c')
        """
        if max_size is not None:
            max_size = check_count("max_size", max_size, least=len(_SPECIALS))
        min_count = check_count("min_count", min_count)
        if not isinstance(token_lists, Iterable):
            raise DataError(f"token_lists must be lists of tokens, got {token_lists!r:.60}")
        counts = Counter(chain.from_iterable(map(_strings, token_lists)))
        learned = [(n, t) for t, n in counts.items() if n >= min_count and t not in _SPECIALS]
        learned.sort(reverse=True)
        kept = learned if max_size is None else learned[: max_size - len(_SPECIALS)]
        return cls(_SPECIALS + tuple(token for _, token in kept))

    @cached_property
    def _ids(self) -> dict[str, int]:
        specials = len(_SPECIALS)
        return {token: index for index, token in enumerate(self.tokens[specials:], specials)}

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.tokens[:_SHOWN]))
        more = ", ..." if len(self) > _SHOWN else ""
        return f"Vocabulary({len(self)} tokens: {shown}{more})"

    def encode(self, tokens: Sequence[str]) -> list[int]:
        """The ids of the tokens.

        Args:
            tokens: the tokens of one text.

        Returns:
            One id a token, ``UNKNOWN`` for those not in the vocabulary. No tokens at all give
            ``[UNKNOWN]``, so that an empty text is still a sequence of length 1.

        Raises:
            DataError: for a string in place of a sequence of tokens, or a token that is none.

        Example:
            >>> Vocabulary.fit([["yes", "no"]]).encode([])
            [1]
        """
        find = self._ids.get
        return [find(token, UNKNOWN) for token in _strings(tokens)] or [UNKNOWN]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The tokens of the ids, padding and unknown ones included.

        Args:
            ids: integers (a list, a NumPy row).

        Returns:
            One token an id.

        Raises:
            DataError: for no list of ids, an id outside ``[0, len(self))``, or one that is no
                integer.

        Example:
            >>> Vocabulary.fit([["yes", "no"]]).decode([2, 1, 0])
            ['yes', '<unk>', '<pad>']
        """
        try:
            given = iter(ids)
        except TypeError:  # a number, or an array of no axes
            raise DataError(f"ids must be a list of integers, got {ids!r:.60}") from None
        ids = [check_integer("id", index) for index in given]
        for index in ids:
            if not 0 <= index < len(self):
                raise DataError(f"id must lie in [0, {len(self)}), got {index}")
        return [self.tokens[index] for index in ids]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary as a JSON file; an interrupted save leaves an older file whole.

        Args:
            path: the file to write or replace, gzipped if it ends in .gz; its folder must exist.

        Raises:
            DataError: a token has half of a surrogate pair, which no file in UTF-8 can hold.

        Example:
            >>> import tempfile
            >>> vocabulary = Vocabulary.fit([["yes", "no"]])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     vocabulary.save(f"{folder}/vocabulary.json")
            ...     Vocabulary.load(f"{folder}/vocabulary.json") == vocabulary
            True
        """
        _require_text(self.tokens)
        content = {"format": _FORMAT, "version": _VERSION, "tokens": self.tokens}
        _write_atomically(Path(path), json.dumps(content, ensure_ascii=False, indent=0) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Read a vocabulary that ``save`` wrote.

        Args:
            path: the JSON file.

        Returns:
            The vocabulary.

        Raises:
            DataError: if the file is missing, is not such a file, or its tokens are not valid.
        """
        path = Path(path)
        if path.is_dir():
            raise DataError(f"{path} must be a vocabulary file, got a folder")
        if not path.is_file():
            raise DataError(f"{path} must be a vocabulary file, got none")
        try:
            content = json.loads(decoded(path))
        except (ValueError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} must be a JSON file in UTF-8, got {error}") from None
        try:
            vocabulary = cls(_require_format(content)["tokens"])
            _require_text(vocabulary.tokens)
            return vocabulary
        except DataError as error:
            raise DataError(f"{path}: {error}") from None


def _strings(tokens: Iterable[str]) -> list[str]:
    """The tokens of a text. A number among them would be unknown for ever, unseen by anybody."""
    if isinstance(tokens, str | bytes) or not isinstance(tokens, Iterable):
        raise DataError(f"tokens must be a list of strings, got {tokens!r:.60}")
    tokens = list(tokens)
    if not all(issubclass(kind, str) for kind in set(map(type, tokens))):
        index, bad = next((i, t) for i, t in enumerate(tokens) if not isinstance(t, str))
        raise DataError(f"token {index} must be a string, got {bad!r:.60}")
    return tokens


def _require_text(tokens: Sequence[str]) -> None:
    """JSON can spell half of a surrogate pair, and two halves would come back as one character."""
    for index, token in enumerate(tokens):
        if not is_unicode(token):
            raise DataError(
                f"token {index} must be Unicode text, got half of a surrogate pair in {token!r}"
            )


def _require_format(content: Any) -> dict[str, Any]:
    found = content.get("format") if isinstance(content, dict) else None
    if found != _FORMAT:
        raise DataError(f"format must be {_FORMAT!r}, got {found!r}")
    if content.get("version") != _VERSION:
        raise DataError(f"version must be {_VERSION}, got {content.get('version')!r}")
    if not isinstance(content.get("tokens"), list):
        raise DataError(f"tokens must be a list, got {type(content.get('tokens')).__name__}")
    return content


def _write_atomically(path: Path, text: str) -> None:
    content = text.encode()
    with written_whole(path) as file:
        file.write(gzip.compress(content, mtime=0) if path.suffix.lower() == ".gz" else content)
