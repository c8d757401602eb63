"""What a file is, as far as its first bytes tell: kind, format, and the size that pict-rs would report.

Nothing is decoded here. The readers walk headers in pure Python, within bounds, because they see bytes that
nobody has looked at yet.
"""

from proxy.media.geometry import Size, processed_size
from proxy.media.signatures import Format, Kind, recognise
from proxy.media.sizes import Measure, measure

__all__ = ["Format", "Kind", "Measure", "Size", "measure", "processed_size", "recognise"]
