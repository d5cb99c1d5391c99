"""Captions for pictures that come without one, by task.

Each is short and says nothing of the picture that might be untrue: no "cropped", "dark" or "close-up",
as the model would learn that the word means this subject.
"""

from __future__ import annotations

from lora_service.dataset.choices import Task

_SUBJECT = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a photo showing {}",
    "this is {}",
    "a picture that shows {}",
    "here is {}",
    "{} in a photo",
)
_STYLE = (
    "a picture in the style of {}",
    "a drawing in the style of {}",
    "an image in the style of {}",
    "a rendering in the style of {}",
    "a work in the style of {}",
    "art in the style of {}",
    "something drawn in the style of {}",
    "a picture, {} style",
)
_LOCATION = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a photo taken at {}",
    "a picture of the place {}",
    "a view of {}",
    "a scene at {}",
)
TEMPLATES: dict[Task, tuple[str, ...]] = {
    "face": _SUBJECT,
    "object": _SUBJECT,
    "style": _STYLE,
    "location": _LOCATION,
}
