"""What can go wrong, as a tree; every message is one sentence for the person who asked.

    LoraServiceError          anything a user can mend
    ├── InputError            a field's value cannot be used
    ├── PicturesError         the pictures cannot be used
    ├── LinkError             a link cannot be used or fetched
    ├── LoraFileError         a file is no LoRA that can be read
    │   └── WrongBaseError    a LoRA belongs to another base model
    ├── BaseModelError        a base model cannot be loaded
    ├── DivergedError         a training came to nothing
    ├── ServingError          Cog's server cannot be started or kept running
    └── EntryError            Cog's build would misread an entry's source

A message names the field or file, quotes the value, and says what would work.
Anything else that is raised is a defect of ours, not of the input.
"""

from __future__ import annotations


class LoraServiceError(Exception):
    """A mistake that the user can mend; the command line exits with 2 on it."""


class InputError(LoraServiceError):
    """A field's value cannot be used.

    Args:
        field: the input's name, as the user knows it.
        value: what was given.
        wanted: what would have been accepted, as the end of "it must be …".
    """

    def __init__(self, field: str, value: object, wanted: str) -> None:
        self.field = field
        super().__init__(f"{field} is {value!r}, but it must be {wanted}.")


class PicturesError(LoraServiceError):
    """The pictures of a training cannot be used."""


class LinkError(LoraServiceError):
    """A link cannot be used, or what it leads to cannot be fetched."""


class LoraFileError(LoraServiceError):
    """A file is not a LoRA that can be read."""


class WrongBaseError(LoraFileError):
    """A LoRA was made for another base model."""


class BaseModelError(LoraServiceError):
    """A base model cannot be loaded."""


class DivergedError(LoraServiceError):
    """A training came to nothing: its loss is no number any more."""


class ServingError(LoraServiceError):
    """Cog's HTTP server cannot be started, or not be kept running."""


class EntryError(LoraServiceError):
    """Cog's build would refuse an entry's source, or misread it in silence.

    Args:
        place: file, line and parameter.
        problem: what is written there and what the build makes of it.
        instead: what to write, as a command.
    """

    def __init__(self, place: str, problem: str, instead: str) -> None:
        super().__init__(f"{place}: {problem}; {instead}.")
