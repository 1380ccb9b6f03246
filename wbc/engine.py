"""What can run a detector, by name: as asked for, and as it was."""

from typing import Literal

EngineChoice = Literal["auto", "torch", "openvino"]
Engine = Literal["torch", "openvino", "mixed"]
