"""pict-rs's API as the gate serves it."""
