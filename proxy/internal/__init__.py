"""The `internal` listener: for Prometheus and health checks; pict-rs and workers come later."""
