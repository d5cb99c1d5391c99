"""The errors a user can mend, as a tree; every message is one sentence for the person who asked.

    LoraServiceError          anything a user can mend
    ├── InputError            a field's value cannot be used
    │   └── SettingError      an environment variable's value cannot be used
    ├── PicturesError         the pictures cannot be used
    ├── LinkError             a link cannot be used or fetched
    │   ├── ForbiddenAddressError   it leads where the service may not connect
    │   └── UnreachableError        its server does not answer as it should now, and may do so later
    ├── LoraFileError         a file is no LoRA that can be read
    │   └── WrongBaseError    a LoRA belongs to another base model
    ├── BaseModelError        a base model cannot be loaded
    ├── AdapterError          a ControlNet or T2I-Adapter cannot be loaded, or fits another base
    ├── HeldBackError         the safety checker held back all pictures of a request
    ├── DivergedError         a training came to nothing
    ├── ProcessesError        of the processes of a training one was ended by something else
    ├── ServingError          Cog's server cannot be started or kept running
    └── EntryError            Cog's build would misread an entry's source

A message names the field or file, quotes the value, and says what would work; values go through ``quote`` and names
through ``shorten``, as both may be megabytes that somebody sent to fill a log. Programs, and tests, go by ``code`` and
``field``: a code is lower-case words joined by ``_`` and keeps its meaning, a sentence may be worded anew at any time.
Anything else that is raised is a defect of ours, not of the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

MAX_QUOTED = 200
"""The most characters of a value in a message, a log or a name."""
_MAX_MESSAGE = 4000  # several values, each cut


def shorten(text: str, limit: int = MAX_QUOTED) -> str:
    """Return ``text`` as it may be shown: at most ``limit`` characters, all of them printable."""
    cut = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return cut if cut.isprintable() else "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in cut)


def quote(value: object) -> str:
    """Return ``value`` as it is quoted in a message: its ``repr``, shortened."""
    if isinstance(value, str | bytes):  # a repr of megabytes is not made only to be cut
        cut = value[: MAX_QUOTED + 1]
        text = repr(cut)
        return text if len(cut) == len(value) and len(text) <= MAX_QUOTED else f"{text[: MAX_QUOTED - 2]}…{text[-1]}"
    return shorten(repr(value))


class LoraServiceError(Exception):
    """A mistake that the user can mend; the command line exits with 2 on it.

    Args:
        message: the sentence for the user.
        code: the machine-readable kind, where a class has several; else the class's own.
        field: the name of the input that is to be changed, as the user knows it, if it is one.
    """

    default_code: ClassVar[str] = "error"

    def __init__(self, message: str, *, code: str = "", field: str = "") -> None:
        super().__init__(shorten(message, _MAX_MESSAGE))
        self.code = code or self.default_code
        self.field = field

    def __reduce__(self) -> tuple[Any, ...]:
        """Go over to another process as it is: the classes' own arguments are not kept."""
        return _restored, (type(self), str(self), self.__dict__)


def _restored(kind: type[LoraServiceError], message: str, attributes: dict[str, Any]) -> LoraServiceError:
    error = kind.__new__(kind, message)
    error.__dict__.update(attributes)
    return error


@contextmanager
def blame_input(name: str) -> Iterator[None]:
    """Name the input ``name`` as the field of errors that have none."""
    try:
        yield
    except LoraServiceError as error:
        error.field = error.field or name
        raise


class InputError(LoraServiceError):
    """A field's value cannot be used.

    Args:
        field: the input's name, as the user knows it.
        value: the value that was given.
        expected: the values that would have been accepted, as the end of "it must be …".
    """

    default_code = "invalid_input"

    def __init__(self, field: str, value: object, expected: str, *, code: str = "") -> None:
        super().__init__(f"{field} is {quote(value)}, but it must be {expected}.", code=code, field=field)
        self.value = value
        self.expected = expected


class SettingError(InputError):
    """An environment variable's value cannot be used; ``field`` is the variable's name."""

    default_code = "invalid_setting"

    def __init__(self, name: str, value: object, expected: str) -> None:
        super().__init__(f"the environment variable {name}", value, expected)
        self.field = name


class PicturesError(LoraServiceError):
    """The pictures of a training cannot be used."""

    default_code = "unusable_pictures"


class LinkError(LoraServiceError):
    """A link cannot be used, or what it leads to cannot be fetched.

    Codes of a link that is refused before the network is asked: ``empty_link``, ``malformed_link``,
    ``malformed_list``, ``malformed_data_uri``, ``not_a_link``, ``unsupported_scheme``, ``page_link`` (a site's page and
    no file), ``folder_link`` (several files), ``model_link`` (a model where one picture or zip is expected),
    ``no_such_file`` (a path of this machine), ``malformed_token``, ``token_for_several_hosts``.

    Codes of what a server answers: ``unknown_host``, ``untrusted_certificate``, ``redirect_loop``,
    ``too_many_redirects``, ``too_many_pages``, ``sign_in_required``, ``token_rejected``, ``not_found``, ``expired``,
    ``refused_by_site``, ``unexpected_status``, ``html_instead_of_file``, ``unreadable_listing``, ``no_lora_file``,
    ``several_lora_files``, ``checkpoint_not_lora``,
    ``no_version_for_base``.

    Codes of the file itself: ``too_large``, ``not_a_lora``, ``git_lfs_pointer``, ``hash_mismatch``, ``disk_full``,
    ``cache_not_writable``, ``too_many_files``.
    """

    default_code = "unusable_link"


class ForbiddenAddressError(LinkError):
    """A link, or a redirect of it, leads to an address or port that the service does not fetch from.

    Codes: ``forbidden_address``, ``forbidden_port``, ``credentials_in_link``.
    """

    default_code = "forbidden_address"


class UnreachableError(LinkError):
    """A server could not be reached, broke off, or was too slow or too busy; asking again later may help.

    Codes: ``unreachable`` (no address answers), ``dns_failure``, ``timed_out`` (a read), ``deadline_exceeded`` (all of
    the fetch), ``cancelled``, ``connection_lost``, ``server_busy``, ``range_refused``.

    Args:
        message: the sentence for the user.
        retry: whether asking again at once may help.
        retry_after: seconds that the server asks to wait first, or None.
    """

    default_code = "unreachable"

    def __init__(self, message: str, *, code: str = "", retry: bool = True, retry_after: float | None = None) -> None:
        super().__init__(message, code=code)
        self.retry = retry
        self.retry_after = retry_after


class LoraFileError(LoraServiceError):
    """A file is not a LoRA that can be read."""

    default_code = "unreadable_lora"


class WrongBaseError(LoraFileError):
    """A LoRA was made for another base model."""

    default_code = "wrong_base"


class BaseModelError(LoraServiceError):
    """A base model cannot be loaded."""

    default_code = "unusable_base"


class AdapterError(LoraServiceError):
    """A ControlNet or T2I-Adapter cannot be loaded, or was made for another base model."""

    default_code = "unusable_adapter"


class HeldBackError(LoraServiceError):
    """The safety checker held back all pictures of a request."""

    default_code = "all_held_back"


class DivergedError(LoraServiceError):
    """A training came to nothing: its loss is no number any more."""

    default_code = "diverged"


class ProcessesError(LoraServiceError):
    """A training in several processes came to its end as one of them was ended, by the system for example."""

    default_code = "process_lost"


class ServingError(LoraServiceError):
    """Cog's HTTP server cannot be started, or not be kept running."""

    default_code = "serving_failed"


class EntryError(LoraServiceError):
    """Cog's build would refuse an entry's source, or misread it in silence.

    Args:
        place: file and line, as ``train.py:14``.
        problem: what is written there and what the build makes of it.
        remedy: what to write, as a command.
        field: the parameter, or the function where no parameter is meant.
    """

    default_code = "misread_entry"

    def __init__(self, place: str, problem: str, remedy: str, *, code: str = "", field: str = "") -> None:
        subject = f"{place}: {field}" if field else place
        super().__init__(f"{subject}: {problem}; {remedy}.", code=code, field=field)
        self.place = place
