"""How long a far store is waited for. A home line is shared by all that are fetched at once."""

WAIT_S = 30.0  # for one answer
_SLOWEST = 16 * 1024  # bytes a second of one file


def whole_s(most: int) -> float:
    """Seconds for a file of up to `most` bytes, however it comes."""
    return 4 * WAIT_S + most / _SLOWEST
