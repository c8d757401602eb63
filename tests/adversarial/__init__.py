"""Requests that want pict-rs to store what nobody has looked at. All pictures are drawn, one pixel each."""
