"""Tokenizers that have Eagle's special tokens: read, completed, or trained on a data set's own text.

tokenizer = read_tokenizer(Path("model/tokenizer.json"))
add_special_tokens(tokenizer)                       # what a plain Qwen2.5 tokenizer lacks
tokenizer = train_tokenizer(["What moves?", "A digit."], vocab_size=300)
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from eagle_model.data.chat import SPECIAL_TOKENS
from eagle_model.data.templates import END_OF_TEXT, TURN_END, TURN_START
from eagle_model.fields import ConfigError, shown
from eagle_model.files import read_json

TOKENIZER_FILE = "tokenizer.json"
OLD_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")  # what a folder without tokenizer.json has
QWEN_WORDS = (  # how Qwen2.5 splits text into words, before it makes tokens of them
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_PRINTED = (*range(33, 127), *range(161, 173), *range(174, 256))  # bytes that byte-level BPE writes as themselves
_BYTE_OF = {chr(byte): byte for byte in _PRINTED}  # character in a token's name -> byte; the others follow from 256 on
_BYTE_OF |= {chr(256 + i): byte for i, byte in enumerate(sorted(set(range(256)) - set(_PRINTED)))}
_TEXT_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)  # what every Qwen2.5 tokenizer has, in its order


def read_tokenizer(path: Path) -> Tokenizer:
    """From a tokenizer.json. Raises ValueError that names the file when it is missing or holds something else."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; needs the tokenizer.json that belongs to the model.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is no tokenizer.json: {error}.") from None


def read_released_tokenizer(folder: Path) -> Tokenizer:
    """From a released model's folder: its tokenizer.json, or else the files that Qwen2.5's first tokenizer had, or
    GPT-2's, as GR00T N1's does: how text is cut into words says tokenizer_class, Qwen's where it says none.

    Raises ValueError that names what is missing, is no tokenizer, or is one of another class.
    """
    if (folder / TOKENIZER_FILE).is_file() or not all((folder / name).is_file() for name in OLD_FILES):
        return read_tokenizer(folder / TOKENIZER_FILE)
    vocab, merges, about = (folder / name for name in OLD_FILES)
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{vocab} and {merges.name} are no tokenizer: {error}.") from None
    tokenizer.decoder = decoders.ByteLevel()
    try:
        fields = read_json(about)
        _cut_into_words(tokenizer, fields, about)
        added = {int(token_id): token for token_id, token in fields["added_tokens_decoder"].items()}
        for _, token in sorted(added.items()):
            tokenizer.add_tokens([AddedToken(token["content"], special=token["special"], normalized=False)])
        wrong = [
            token["content"] for token_id, token in added.items() if tokenizer.token_to_id(token["content"]) != token_id
        ]
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{about} has no added_tokens_decoder that can be read ({error!r}).") from None
    if wrong:
        raise ValueError(
            f"{about} gives {wrong[0]!r} an id that does not follow {vocab.name}'s; they do not belong together."
        )
    return tokenizer


def _cut_into_words(tokenizer: Tokenizer, fields: dict, about: Path) -> None:
    """As transformers' class of tokenizer_class does, in place. Raises ConfigError for another class."""
    name = fields.get("tokenizer_class") or "Qwen2Tokenizer"
    if name in ("GPT2Tokenizer", "GPT2TokenizerFast"):
        has_space = fields.get("add_prefix_space") is True
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=has_space)
        return
    if name not in ("Qwen2Tokenizer", "Qwen2TokenizerFast"):
        raise ConfigError(
            f"{about}: tokenizer_class is {shown(name)}; without {TOKENIZER_FILE}, Qwen2Tokenizer and GPT2Tokenizer "
            f"can be read. Save it with transformers, which writes {TOKENIZER_FILE}."
        )
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """The UTF-8 of a token; of one that is a part of a character, that part.

    token_bytes(tokenizer, 128)                # b"\xc3": where text has room for U+FFFD alone
    """
    text = tokenizer.decode([token_id], skip_special_tokens=False)
    written = tokenizer.id_to_token(token_id) or ""
    if "\ufffd" not in text or not all(char in _BYTE_OF for char in written):
        return text.encode()
    return bytes(_BYTE_OF[char] for char in written)


def add_special_tokens(tokenizer: Tokenizer) -> int:
    """Gives a tokenizer, in place, the tokens of chat.SPECIAL_TOKENS and of ChatML that it lacks, in that order.

    Returns how many were added. The model's embedding must have `tokenizer.get_vocab_size()` rows afterwards.
    """
    wanted = [*_TEXT_TOKENS, *SPECIAL_TOKENS]
    lacking = [token for token in wanted if tokenizer.token_to_id(token) is None]
    return tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in lacking])


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE trained on `texts`, with ChatML's and Eagle's special tokens as its last ids.

    vocab_size counts all of them; the tokenizer may have fewer where the texts give no more merges. It encodes every
    string: its alphabet is the 256 bytes. The same texts give the same tokenizer.

    Raises ValueError if vocab_size has no room for the bytes and the special tokens.
    """
    num_special = len(_TEXT_TOKENS) + len(SPECIAL_TOKENS)
    if vocab_size < 256 + num_special:
        raise ValueError(
            f"train_tokenizer: vocab_size is {vocab_size}; needs at least {256 + num_special}: "
            f"256 bytes and {num_special} special tokens."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - num_special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    add_special_tokens(tokenizer)
    return tokenizer


def counting_tokenizer() -> Tokenizer:
    """Counts text where no checkpoint's tokenizer is at hand: one token a piece of Qwen2.5's own word splitting.

    Exact for frame labels (their words are single tokens there, their digits one token each), a lower bound for rare
    words. All pieces have one id, so its ids say nothing.
    """
    tokenizer = Tokenizer(models.WordLevel({"word": 0}, unk_token="word"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
    add_special_tokens(tokenizer)
    return tokenizer
