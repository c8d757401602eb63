"""The `internal` listener: pict-rs's validation, workers that poll, metrics and health."""
