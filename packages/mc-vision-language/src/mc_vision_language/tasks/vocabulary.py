"""Words that a tokenizer made from captions does not know: ``how many`` and ``yes`` occur in questions, not in captions.

A tokenizer of our own spells them letter by letter, and a question no longer fits its length. Here such words become entries of
their own; their embeddings start as the mean of those of their pieces. Tokenizers of published text encoders stay as they are.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MOST = 2000
_TWICE = 2


class Grown(NamedTuple):
    """A tokenizer with more words.

    Attributes:
        tokenizer: a copy, whose new entries come after the old ones.
        pieces: of each new word, the ids of its old pieces.
    """

    tokenizer: PreTrainedTokenizerFast
    pieces: tuple[tuple[int, ...], ...]


def with_words(
    tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], *, needed: Iterable[str] = (), most: int = MOST
) -> Grown:
    """Make entries of words that occur at least twice, or are needed, and have no entry.

    Args:
        tokenizer: of our own kind; it stays as it is.
        texts: cleaned.
        needed: texts whose words are made entries however rare they are, such as the answers to choose from.
        most: new entries at most, needed ones first, then the most frequent.

    >>> from mc_vision_language.tokenizers import train_tokenizer
    >>> old = train_tokenizer(["a red house"], 64)
    >>> grown = with_words(old, ["are houses red", "are houses blue"])
    >>> old.tokenize("are red"), grown.tokenizer.tokenize("are red"), len(grown.pieces)
    (['a', '##r', '##e', 'red'], ['are', 'red'], 2)
    """
    counts = Counter(word for text in texts for word in text.split())
    wanted = dict.fromkeys(word for text in needed for word in text.split())
    common = (word for word, times in counts.items() if times >= _TWICE and word not in wanted)
    frequent = [*wanted, *sorted(common, key=lambda word: (-counts[word], word))]
    pieces = tokenizer(frequent, add_special_tokens=False).input_ids if frequent else []
    unknown = tokenizer.unk_token_id
    new = [
        (word, tuple(ids))
        for word, ids in zip(frequent, pieces, strict=True)
        if (len(ids) > 1 or unknown in ids) and word.isalnum()
    ][:most]
    grown = copy.deepcopy(tokenizer)
    if new:
        from tokenizers import AddedToken

        grown.add_tokens([AddedToken(word, single_word=True, normalized=True) for word, _ in new])
    return Grown(grown, tuple(ids for _, ids in new))


def grown_rows(table: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    """(V + n, …) a table (V, …) with a row for each new word: the mean of the rows of its pieces.

    >>> grown_rows(torch.tensor([[0.0], [2.0], [4.0]]), [(1, 2)]).flatten().tolist()
    [0.0, 2.0, 4.0, 3.0]
    """
    new = [table[torch.tensor(ids, device=table.device)].mean(0) for ids in pieces]
    return torch.cat([table, torch.stack(new)]) if new else table
