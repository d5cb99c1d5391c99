"""The few words that inputs of the same name accept."""

from __future__ import annotations

from typing import Literal

Task = Literal["face", "object", "style", "location"]
MaskMode = Literal["auto", "face", "none", "files"]
CaptionMode = Literal["auto", "files", "filename", "template", "model"]
MaskSource = Literal["face", "file", "alpha"]
CaptionSource = Literal["file", "filename", "template", "model"]
