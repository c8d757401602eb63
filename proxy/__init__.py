"""pictrs-gate: looks at every picture before pict-rs stores it."""

from importlib.metadata import version

__version__ = version("pictrs-gate")
