"""Ways to have a file looked at: from bytes to signals, or to the reason why there are none."""
