"""Cases: what is held is sealed first, promised second, and decided by a human."""
