"""The part of a caption that a base's text encoders read, and the subject's place in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from lora_service.dataset.options import SUBJECT
from lora_service.errors import InputError


@dataclass(frozen=True)
class TokenWindow:
    """The tokens at the start of a text that the text encoders read; what comes later is cut without effect.

    Args:
        count: the number of a text's tokens, without its start and end.
        size: the number of tokens that are read at once, without the start and end.
        subject_tokens: the number of tokens of the longest text that names the subject.
        chunks: the most pieces of ``size`` tokens that are read, one by one.
    """

    count: Callable[[str], int]
    size: int
    subject_tokens: int = 0
    chunks: int = 1

    @property
    def total(self) -> int:
        """The number of tokens that are read."""
        return self.size * self.chunks

    def for_subject(self, field: str, text: str) -> TokenWindow:
        """Return the window of captions in which ``text``, of the input ``field``, may name the subject.

        Raises:
            InputError: the text alone is longer than a chunk.
        """
        if not text:
            return self
        tokens = self.count(text)
        if tokens > self.size:
            expected = f"at most {self.size} tokens, which is all that the base reads at once, and not {tokens}"
            raise InputError(field, text, expected, code="too_many_tokens")
        return replace(self, subject_tokens=max(self.subject_tokens, tokens))

    def length(self, template: str) -> int:
        """Return the number of tokens of ``template`` with the subject named; an upper limit where it surely fits."""
        upper_limit = len(template) + template.count(SUBJECT) * self.subject_tokens
        if template.isascii() and upper_limit <= self.size:  # a token is a byte or more
            return upper_limit
        parts = template.split(SUBJECT)
        return sum(map(self.count, parts)) + (len(parts) - 1) * self.subject_tokens

    def keep_subject(self, template: str) -> str:
        """Return ``template`` with a subject in front that would be beyond what is read, or be cut by a chunk's end."""
        if self.length(template) <= self.size:
            return template
        before, subject, after = template.partition(SUBJECT)
        if not subject or self._is_read(self.count(before)):
            return template
        rest = f"{before.rstrip(' ,')}{after}" if before.rstrip().endswith(",") else before + after
        return f"{SUBJECT}, {' '.join(rest.split())}".rstrip(" ,")

    def _is_read(self, start: int) -> bool:
        """Return True if a subject behind ``start`` tokens lies in one chunk."""
        last = start + max(1, self.subject_tokens) - 1
        return last < self.total and start // self.size == last // self.size

    def warning(self, template: str, text: str = "its caption") -> str:
        """Return what a person should know of ``template``, called ``text``; "" if all of it is read as it is."""
        tokens, is_moved = self.length(template), self.keep_subject(template) != template
        if tokens > self.total:
            moved = ", so the subject at its end was put in front" if is_moved else ""
            return f"{text} has {tokens} tokens, of which the base reads the first {self.total}{moved}"
        if is_moved:
            return f"{text} names the subject where {self.size} tokens end, so the subject was put in front"
        return ""
