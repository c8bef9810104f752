"""The closed vocabularies of Dualformer's mazes and Sokoban levels: one token a word, words apart by blanks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import TokenizersBackend

from hf_ext.data.maze import maze_words
from hf_ext.data.sokoban import sokoban_words

BOS, EOS = "bos", "eos"


class DualformerTokenizer(TokenizersBackend):
    """Words to ids and back; a prompt gets bos and eos around it.

    The vocabulary is bos (0, which also pads), eos (1) and the task's words in the order of strings. A word outside it is an error.

    ```python
    >>> tokenizer = DualformerTokenizer.for_maze(5, 5)
    >>> tokenizer("start 0 0 goal 4 4 wall 2 2")["input_ids"]
    ```

    Args:
        vocab: word -> id, bos and eos among them.
    """

    model_input_names = ["input_ids", "attention_mask"]
    model = models.WordLevel

    def __init__(
        self, vocab: dict[str, int] | None = None, bos_token=BOS, eos_token=EOS, pad_token=BOS, **kwargs: Any
    ) -> None:
        vocab = {BOS: 0, EOS: 1} if vocab is None else vocab
        self._tokenizer = Tokenizer(
            models.WordLevel(vocab, unk_token="unknown")
        )  # which is no word of it, hence an error
        self._tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        super().__init__(bos_token=bos_token, eos_token=eos_token, pad_token=pad_token, **kwargs)
        bos, eos = (str(token) for token in (bos_token, eos_token))
        self._tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A", eos], special_tokens=[(bos, vocab[bos]), (eos, vocab[eos])]
        )

    @classmethod
    def of_words(cls, words: Iterable[str], **kwargs: Any) -> DualformerTokenizer:
        """Numbers bos, eos and the sorted words."""
        return cls(vocab={word: number for number, word in enumerate([BOS, EOS, *sorted(words)])}, **kwargs)

    @classmethod
    def for_maze(cls, width: int, height: int) -> DualformerTokenizer:
        """max(width, height) + width * height + 8 tokens"""
        return cls.of_words(maze_words(width, height))

    @classmethod
    def for_sokoban(cls, width: int = 7, height: int = 7, max_cost: int = 40000) -> DualformerTokenizer:
        """max(width, height) + max_cost + 9 tokens"""
        return cls.of_words(sokoban_words(width, height, max_cost))


__all__ = ["DualformerTokenizer"]
