"""Text to tokens: four small tokenizers, two of them exact copies of well-known ones."""

from collections.abc import Callable
from types import MappingProxyType

from rnnjax.data.errors import check_text

# The order matters: removing a double quote first can complete a line-break tag.
_BASIC_ENGLISH_RULES = (
    ("'", " '  "),
    ('"', ""),
    (".", " . "),
    ("<br />", " "),
    (",", " , "),
    ("(", " ( "),
    (")", " ) "),
    ("!", " ! "),
    ("?", " ? "),
    (";", " "),
    (":", " "),
)

_PUNCTUATION = b"!\"#$%&()*+,-./:;<=>?@[\\]^_`{|}~'"


def basic_english(text: str) -> list[str]:
    """Lower-case words and punctuation, token for token as torchtext's ``basic_english``.

    Periods, commas, parentheses, apostrophes, exclamation and question marks become tokens;
    double quotes vanish; semicolons, colons and ``<br />`` become spaces.

    Args:
        text: any string.

    Returns:
        The tokens; an empty list for a text without any.

    Raises:
        DataError: it is no string.

    Example:
        >>> basic_english("Don't stop<br />me, now!")
        ['don', "'", 't', 'stop', 'me', ',', 'now', '!']
    """
    text = check_text("text", text).lower()
    for old, new in _BASIC_ENGLISH_RULES:
        text = text.replace(old, new)
    return text.split()


def strip_punctuation(text: str) -> list[str]:
    """Lower-case words without punctuation, as the default of Keras ``TextVectorization``.

    As there, only ASCII letters are lower-cased and only ASCII white space separates words.

    Args:
        text: any string.

    Returns:
        The tokens; an empty list for a text without any.

    Raises:
        DataError: it is no string.

    Example:
        >>> strip_punctuation("Don't stop me, NOW!")
        ['dont', 'stop', 'me', 'now']
    """
    # Bytes methods know ASCII only, which is what Keras does; surrogatepass keeps any str legal.
    encoded = check_text("text", text).encode("utf-8", "surrogatepass")
    words = encoded.lower().translate(None, _PUNCTUATION).split()
    return [word.decode("utf-8", "surrogatepass") for word in words]


def characters(text: str) -> list[str]:
    """Every character of the text, spaces included, unchanged.

    Args:
        text: any string.

    Returns:
        One token for each character.

    Raises:
        DataError: it is no string.

    Example:
        >>> characters("Hi you")
        ['H', 'i', ' ', 'y', 'o', 'u']
    """
    return list(check_text("text", text))


def words_and_line_ends(text: str) -> list[str]:
    """Words between white space, and ``<eos>`` at the end of every line, as for word models.

    These are the tokens that published figures on Penn Treebank count.

    Args:
        text: any string; a last line without its end gets ``<eos>`` all the same.

    Returns:
        The tokens; an empty list for an empty text.

    Raises:
        DataError: it is no string.

    Example:
        >>> words_and_line_ends(" no it was n't \\n black monday \\n")
        ['no', 'it', 'was', "n't", '<eos>', 'black', 'monday', '<eos>']
    """
    lines = text.removesuffix("\n").split("\n") if check_text("text", text) else []
    return [word for line in lines for word in (*line.split(), "<eos>")]


TOKENIZERS: MappingProxyType[str, Callable[[str], list[str]]] = MappingProxyType(
    {
        "basic_english": basic_english,
        "strip_punctuation": strip_punctuation,
        "characters": characters,
    }
)
