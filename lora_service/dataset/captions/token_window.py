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
        size: the number of tokens that are read, without the start and end.
        subject_tokens: the number of tokens of the longest text that names the subject.
    """

    count: Callable[[str], int]
    size: int
    subject_tokens: int = 0

    def for_subject(self, field: str, text: str) -> TokenWindow:
        """Return the window of captions in which ``text``, of the input ``field``, may name the subject.

        Raises:
            InputError: the text alone is longer than the window.
        """
        if not text:
            return self
        tokens = self.count(text)
        if tokens > self.size:
            expected = f"at most {self.size} tokens, which is all that the base reads, and not {tokens}"
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
        """Return ``template`` with a subject that lies beyond the window put in front instead."""
        if self.length(template) <= self.size:
            return template
        before, subject, after = template.partition(SUBJECT)
        if not subject or self.count(before) + self.subject_tokens <= self.size:
            return template
        rest = f"{before.rstrip(' ,')}{after}" if before.rstrip().endswith(",") else before + after
        return f"{SUBJECT}, {' '.join(rest.split())}".rstrip(" ,")

    def warning(self, template: str, text: str = "its caption") -> str:
        """Return what a person should know of ``template``, called ``text``; "" if all of it is read."""
        tokens = self.length(template)
        if tokens <= self.size:
            return ""
        moved = ", so the subject at its end was put in front" if self.keep_subject(template) != template else ""
        return f"{text} has {tokens} tokens, of which the base reads the first {self.size}{moved}"
