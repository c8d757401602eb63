"""The same look for what was stored before the gate was there."""
